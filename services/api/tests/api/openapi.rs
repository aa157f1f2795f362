//! The description of the API is what it was.

#[test]
fn the_document_is_the_one_that_was_agreed() {
    insta::assert_snapshot!(api::openapi());
}
