//! The Kubernetes operator of Synod.
