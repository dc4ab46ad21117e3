//! Safety assertions over one member's state; the simulator calls them after every step.

use super::Node;

impl Node {
    /// Checks what must hold between any two inputs.
    ///
    /// # Panics
    /// With both sides of the relation that does not hold.
    pub fn check_invariants(&self) {
        let applied = self.system.as_ref().map_or(self.chosen_through, |s| s.applied);
        assert!(
            self.trim_through <= applied && applied == self.chosen_through,
            "trim {:?} <= applied {applied:?} == chosen_through {:?}",
            self.trim_through,
            self.chosen_through
        );
        assert!(
            self.disk.chosen_durable() <= self.chosen_through,
            "durable {:?} <= chosen_through {:?}",
            self.disk.chosen_durable(),
            self.chosen_through
        );
        if let Some((slot, _)) = self.rows.first_key_value() {
            assert!(*slot > self.chosen_through, "row {slot:?} at or below {:?}", self.chosen_through);
        }
        for row in self.rows.values().filter(|row| !row.chosen) {
            assert!(row.ballot <= self.promised, "accepted {row:?} above promised {:?}", self.promised);
        }
        self.check_proposer();
    }

    fn check_proposer(&self) {
        let Some(proposer) = &self.proposer else { return };
        assert!(
            proposer.ballot == self.promised,
            "proposes under {:?} but promised {:?}",
            proposer.ballot,
            self.promised
        );
        let Some(system) = &self.system else { return };
        let window = self.chosen_through.0 + system.configurations.alpha();
        for slot in proposer.in_flight.keys() {
            assert!(slot.0 <= window, "{slot:?} is proposed beyond the window that ends at {window}");
            assert!(*slot < proposer.next_slot, "{slot:?} in flight at or above {:?}", proposer.next_slot);
        }
        let leads = proposer.is_leading();
        let promisers = proposer.promisers(self.chosen_through);
        let next = self.chosen_through.next();
        let phase_one = system.configurations.at(next).has_quorum(&promisers);
        assert!(
            !leads || proposer.in_flight.is_empty() || phase_one || proposer.next_slot <= next,
            "in flight without phase 1 for {next:?}"
        );
    }
}
