//! What `synod-cluster` refuses, with a sentence that says what to do, before it changes anything.
//!
//! The network tests run in a network namespace of their own; they need root, as the cluster does.

use std::path::Path;
use std::process::{Command, Output};

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_synod-cluster")
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "it was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_user_who_is_not_root_is_told_to_be() {
    // A user namespace without a mapping: whoever runs this is nobody in there.
    let output =
        Command::new("unshare").args(["--user", program(), "up", "--name", "refused"]).output().unwrap();
    let text = said(&output);
    assert!(text.contains("need root") && text.contains("sudo -E make"), "{text}");
}

#[test]
fn addresses_in_use_are_named_and_nothing_is_changed() {
    let script = "ip link add taken type bridge && ip address add 10.255.254.1/24 dev taken && \
                  \"$1\" up --name refused --link 10.255.254.4/30; status=$?; ip -o link >&2; exit $status";
    let output =
        Command::new("unshare").args(["--net", "sh", "-c", script, "sh", program()]).output().unwrap();
    let text = said(&output);
    assert!(text.contains("10.255.254.4/30") && text.contains("in use by the interface taken"), "{text}");
    assert!(text.contains("SYNOD_CLUSTER_LINK="), "{text}");
    assert!(!text.contains(": sy"), "a link was made: {text}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(!root.join("target/cluster/refused").exists());
}

#[test]
fn wrong_arguments_are_refused() {
    for (args, wanted) in [
        (&["up", "--name", "No_Name"][..], "cannot name a cluster"),
        (&["up", "--nodes", "0"], "1 to 20 nodes"),
        (&["up", "--nodes", "21"], "1 to 20 nodes"),
        (&["up", "--link", "10.244.0.0/30"], "no range of four addresses"),
        (&["status", "--name", "absent"], "start it with `synod-cluster up --name absent`"),
        (&["down", "--root", "/"], "is in no checkout"),
        (&["up", "--unknown"], "unexpected argument"),
    ] {
        let output = Command::new(program()).args(args).output().unwrap();
        let text = said(&output);
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn taking_down_what_is_not_there_is_no_error() {
    let output = Command::new(program()).args(["down", "--name", "absent", "--quiet"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
}
