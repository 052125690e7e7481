//! The web app, embedded; unknown paths without an extension are pages of its own router.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use rust_embed::RustEmbed;

use super::{Shared, errors::Failure};
use crate::Hub;

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct WebApp;

/// A file of the web app, or its one page.
pub(super) async fn file(State(hub): Shared, uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path.starts_with("api/") {
        return Failure::not_found("the API has no such address; see /api/v1/openapi.json")
            .into_response();
    }
    let is_page = !path.rsplit('/').next().unwrap_or_default().contains('.');
    let name = if is_page { "index.html" } else { path };
    let Some(found) = WebApp::get(name) else {
        let message = if is_page {
            "the web app was not built into this hub; build it with `npm run build` in web/"
        } else {
            "there is no such file"
        };
        return (StatusCode::NOT_FOUND, message).into_response();
    };
    let mut headers = HeaderMap::new();
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_str(kind.as_ref())
            .unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    // Built files carry a hash in their name; the page itself does not.
    let cache = if name.starts_with("assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy(&hub));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    (headers, found.data.into_owned()).into_response()
}

/// Nothing but our own files, and the gateway that the operator named.
fn policy(hub: &Arc<Hub>) -> HeaderValue {
    let gateway = hub.config.gateway.as_deref().unwrap_or_default();
    let policy = format!(
        "default-src 'self'; connect-src 'self' {gateway}; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'self'"))
}
