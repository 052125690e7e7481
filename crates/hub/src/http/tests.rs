//! The API document stays what the committed copy says; the web client is generated from that copy.

#[test]
fn the_committed_document_is_the_apis() {
    expect_test::expect_file!["../../../../docs/openapi.json"].assert_eq(&super::openapi());
}
