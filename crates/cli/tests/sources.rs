//! `quarrel run`, `embed` and `doctor` with a model whose encoder reads the prompt: tiny ones of random weights.

use std::process::{Command, Stdio};

/// What is printed, if all goes well.
fn quarrel(args: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_quarrel"))
        .args(args)
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

const FLAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conform/goldens/encdec/flan-t5/model.gguf");
const T5: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conform/goldens/encdec/t5/model.gguf");

#[test]
fn a_prompt_is_answered_and_embedded() {
    // What `transformers` says.
    for (model, said) in [
        (
            FLAN,
            "<extra_id_3><extra_id_34><extra_id_34><extra_id_2><extra_id_25><extra_id_25><extra_id_25><extra_id_25>",
        ),
        (
            T5,
            "<extra_id_11><extra_id_11><extra_id_11><extra_id_11><extra_id_11><extra_id_11><extra_id_11><extra_id_11>",
        ),
    ] {
        let args = ["run", "--model", model, "--temp", "0", "-n", "8", "--quiet", "the cat and the dog"];
        assert_eq!(quarrel(&args).trim(), said);
    }
    assert!(quarrel(&["embed", FLAN, "the cat", "a dog"]).contains("24 dimensions"));
    let seen = quarrel(&["doctor", FLAN]);
    assert!(seen.contains("a bias by distance") && seen.contains("goes on with"), "{seen}");
}
