//! The consensus core of Synod: Multi-Paxos without IO.
