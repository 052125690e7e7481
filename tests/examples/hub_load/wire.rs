//! Requests as bytes.

/// A request without a body.
pub(super) fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET /api/v1/{path} HTTP/1.1\r\nhost: hub\r\n{headers}\r\n").into_bytes()
}

/// A request with one.
pub(super) fn with_body(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} /api/v1/{path} HTTP/1.1\r\nhost: hub\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
