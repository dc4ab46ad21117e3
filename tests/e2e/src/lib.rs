//! What the end-to-end tests share: one running Kubernetes, a namespace for each test, kubectl.
//!
//! `make test` brings the cluster `test` up before the tests and takes it down after them. By hand:
//!
//! ```text
//! cargo run -p synod-cluster -- up --name test
//! cargo run -p synod-cluster -- images --load test
//! cargo test -p synod-e2e
//! ```
//! A test fails, rather than being skipped, where the cluster is absent. A test that disturbs a node
//! has a name that starts with `node_fault`: the test runner then runs nothing beside it.

pub mod figures;
pub mod load;
pub mod report;
pub mod synod;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use report::Row;
use serde_json::Value;
use synod_cluster::{Cluster, images, run};

/// One test's namespace on the cluster. Removed at the end; a test that fails prints what it held.
pub struct Test {
    /// The cluster.
    pub cluster: Cluster,
    /// The test's own namespace.
    pub namespace: String,
    began: Instant,
    /// What the report is to say of it.
    row: Mutex<Row>,
}

impl Test {
    /// A namespace that enforces Pod Security `restricted`. `name` is the test's, in lower case with
    /// `-`, at most 30 characters.
    ///
    /// # Panics
    /// If the cluster does not run; the message says how to start it.
    pub fn new(name: &str) -> Self {
        let root = root();
        let hint = "cargo run -p synod-cluster -- up --name test` and `cargo run -p synod-cluster -- images \
                    --load test` (`make test` does both)";
        let cluster = match Cluster::attach(&root, "test", hint) {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let namespace = format!("e2e-{name}-{:x}", now & 0xff_ffff);
        let test = Test { cluster, namespace, began: Instant::now(), row: Mutex::default() };
        test.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}, labels: \
             {{pod-security.kubernetes.io/enforce: restricted}}}}}}",
            test.namespace
        ));
        test
    }

    /// What the report is to say of this test, beside its name, its time and whether it passed.
    pub fn note(&self, row: Row) {
        *self.row.lock().unwrap_or_else(PoisonError::into_inner) = row;
    }

    /// Runs kubectl in the test's namespace and gives what it printed.
    ///
    /// # Panics
    /// If kubectl fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        match self.try_kubectl(args) {
            Ok(text) => text,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs kubectl in the test's namespace; its failure is the result.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn try_kubectl(&self, args: &[&str]) -> synod_cluster::Result<String> {
        run::output(self.cluster.kubectl().args(["-n", &self.namespace]).args(args))
    }

    /// Applies a manifest in the test's namespace.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn apply(&self, manifest: &str) {
        if let Err(error) = self.try_apply(manifest) {
            panic!("{error}");
        }
    }

    /// Applies a manifest; the refusal is the result.
    ///
    /// # Errors
    /// What the API server said.
    pub fn try_apply(&self, manifest: &str) -> synod_cluster::Result<String> {
        let mut command = self.cluster.kubectl();
        command.args(["-n", &self.namespace, "apply", "--server-side", "--force-conflicts", "-f", "-"]);
        run::output_with_input(&mut command, manifest.as_bytes())
    }

    /// An object as JSON.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).expect("kubectl prints JSON")
    }

    /// Runs a program in a container and gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn exec(&self, pod: &str, container: &str, args: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "-c", container, "--"][..], args].concat())
    }

    /// Waits until `look` gives something, looking again every 100 ms.
    ///
    /// # Panics
    /// After `seconds`, with `what` and what the namespace held.
    pub fn wait<T>(&self, what: &str, seconds: u64, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "waited {seconds} s for {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The reference of one of the project's images, as loaded on every node.
    ///
    /// # Panics
    /// If the images are not built.
    pub fn image(&self, name: &str) -> String {
        let list = match images::listed(&root()) {
            Ok(list) => list,
            Err(error) => panic!("{error}"),
        };
        let prefix = format!("localhost/{name}:");
        let found = list.into_iter().find(|image| image.reference.starts_with(&prefix));
        found.unwrap_or_else(|| panic!("no image is named {name}")).reference
    }

    /// The node a pod runs on.
    pub fn node_of(&self, pod: &str) -> String {
        self.get("pod", pod)["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        let mut row = self.row.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The test runner names the thread after the test.
        row.name = std::thread::current().name().unwrap_or(&self.namespace).replace("::", "_");
        row.seconds = self.began.elapsed().as_secs_f64();
        row.verdict = if std::thread::panicking() { "failed" } else { "passed" }.to_owned();
        if let Err(error) = report::keep(&root(), &row) {
            eprintln!("the report will not tell of {}: {error}", row.name);
        }
        if std::thread::panicking() {
            for args in [
                &["get", "all,pvc", "-o", "wide"][..],
                &["get", "events", "--sort-by=.lastTimestamp"],
                &["logs", "--all-containers", "--prefix", "--tail=40", "-l", "app.kubernetes.io/managed-by"],
            ] {
                if let Ok(text) = self.try_kubectl(args) {
                    eprintln!("--- kubectl {}\n{text}", args.join(" "));
                }
            }
        }
        let _ = self.try_kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

/// The checkout.
fn root() -> std::path::PathBuf {
    match synod_cluster::find_root(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        Ok(root) => root,
        Err(error) => panic!("{error}"),
    }
}
