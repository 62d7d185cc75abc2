//! Help texts and usage errors as people see them. `TRYCMD=overwrite cargo test -p quarrel --test usage` rewrites them.

#[test]
fn help_and_usage_errors() {
    trycmd::TestCases::new().env("QUARREL_MODEL", "").env("COLUMNS", "100").case("tests/cmd/*.trycmd");
}
