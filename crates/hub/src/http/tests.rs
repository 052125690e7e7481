//! The API document stays what the committed copy says, from which the web client is generated; and what all answers have
//! in common.

use axum::{
    Router,
    body::Body,
    http::{Request, header},
    routing::get,
};
use tower::ServiceExt;
use tower_http::compression::CompressionLayer;

#[test]
fn the_committed_document_is_the_apis() {
    expect_test::expect_file!["../../../../docs/openapi.json"].assert_eq(&super::openapi());
}

#[tokio::test]
async fn bytes_go_as_they_are_and_texts_compressed() {
    let check = async |content_type: &'static str, encoding: Option<&str>| {
        let answer =
            move || async move { ([(header::CONTENT_TYPE, content_type)], vec![7; 4_096]) };
        let router: Router = Router::new()
            .route("/", get(answer))
            .layer(CompressionLayer::new().compress_when(super::compressible()));
        let request = Request::get("/").header(header::ACCEPT_ENCODING, "gzip");
        let response = router
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let found = response.headers().get(header::CONTENT_ENCODING);
        assert_eq!(
            found.map(|it| it.to_str().unwrap()),
            encoding,
            "{content_type}"
        );
    };
    check("application/octet-stream", None).await;
    check("application/json", Some("gzip")).await;
}
