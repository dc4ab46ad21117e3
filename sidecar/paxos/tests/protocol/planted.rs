//! The bug that the mutation tests want planted in this process, if they do.

/// Plants what `SYNOD_PLANTED` names. Without the switches in the build there is nothing to plant.
pub(crate) fn plant() {
    #[cfg(synod_planted)]
    if let Ok(name) = std::env::var("SYNOD_PLANTED") {
        let bug = synod_paxos::planted::Bug::ALL.iter().find(|bug| bug.name() == name);
        synod_paxos::planted::plant(*bug.expect("SYNOD_PLANTED names a bug of the list"));
    }
}
