//! Misuse that must not compile, and what the compiler says to it.
//!
//! The `.stderr` files hold the words of the compiler that is current when they change; `TRYBUILD=overwrite` renews
//! them.

#[test]
#[ignore = "compiles its dependencies anew; ci/test.sh runs it"]
fn does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
