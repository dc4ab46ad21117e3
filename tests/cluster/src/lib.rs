//! A real local Kubernetes for Synod's tests and demo: a control plane and some nodes on one machine,
//! each node in namespaces of its own, without Docker and without pulling an image.
//!
//! [`Cluster`] brings one up, finds it again and takes it down; its fault methods cut, stop and heal
//! nodes and pods. The programs are built from source once ([`Programs`]), images are written from
//! static programs ([`image`]). The crate only starts and watches other programs, so it is plain
//! synchronous code.
//!
//! What is put on the machine itself: one link with one address, a folder under `/run`, the cgroups,
//! and the state under `target/cluster/NAME`. [`Cluster::down`] removes all of it but the logs.

mod cgroup;
mod cluster;
mod components;
mod config;
mod error;
mod faults;
pub mod image;
pub mod images;
mod layout;
mod lock;
pub mod machine;
mod network;
mod node;
mod pki;
mod process;
mod programs;
mod progress;
pub mod run;
mod sysctl;

pub use cluster::{Cluster, NodeStatus, Options, ProcessStatus, Status};
pub use config::{BUSYBOX_IMAGE, COREDNS_IMAGE, PAUSE_IMAGE};
pub use error::{Error, Output, Result};
pub use faults::{Container, Exec};
pub use layout::{Layout, Link, MAX_NODES, Node, find_root};
pub use programs::{KUBERNETES_VERSION, Programs, SETS, Set, cache_dir};
pub use progress::{Progress, Step};
