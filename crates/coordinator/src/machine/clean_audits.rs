//! How far back the rows of a machine are known to be right: for every rank, the state before the unit in which it was last
//! audited without a difference. When a machine turns out to compute wrong numbers, the run goes back to that state. Pure.
//!
//! The machine is what may be faulty, not the process: what a process left unaudited when it went is the burden of the next
//! one on the same host and device, until one there is audited.

use std::collections::BTreeMap;
use std::sync::Arc;

use numalign_data::Schedule;
use numalign_projector::State;

use super::events::MemberId;

/// A device of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostDevice {
    /// Host name.
    pub host: String,
    /// Device, as its workers describe it.
    pub device: String,
}

/// A member that has a rank or had one.
#[derive(Debug, Clone)]
struct Audited {
    machine: HostDevice,
    clean: Arc<State>,
}

/// The state that each machine's rows are known to be right up to. No state is in the middle of a round of the solver.
#[derive(Debug, Clone)]
pub struct CleanAudits {
    units: Schedule,
    members: BTreeMap<MemberId, Audited>,
    /// Of members that are gone.
    gone: BTreeMap<HostDevice, Arc<State>>,
    /// Where this coordinator began: what is before that is another one's, and was recorded with the checkpoint.
    floor: Option<Arc<State>>,
    /// A rank was audited at least once.
    has_audited: bool,
}

impl CleanAudits {
    /// Nothing is known of any machine.
    pub fn new(units: Schedule) -> Self {
        Self { units, members: BTreeMap::new(), gone: BTreeMap::new(), floor: None, has_audited: false }
    }

    /// What the run's folder says: a coordinator continues from `floor`, or from the beginning, and these machines had
    /// unaudited rows since then or before.
    #[must_use]
    pub fn continued(mut self, floor: Option<Arc<State>>, machines: BTreeMap<HostDevice, Arc<State>>) -> Self {
        self.gone = machines;
        if let Some(floor) = &floor {
            self.cut_after(floor);
        }
        self.floor = floor;
        self
    }

    fn earlier(&self, a: &Arc<State>, b: &Arc<State>) -> Arc<State> {
        let unit = |state: &State| self.units.index(state.position());
        if unit(b) < unit(a) { b.clone() } else { a.clone() }
    }

    /// The state before the first step, where this coordinator continues from nothing.
    pub fn start_from(&mut self, initial: impl FnOnce() -> State) {
        if self.floor.is_none() {
            let initial = Arc::new(initial());
            self.cut_after(&initial);
            self.floor = Some(initial);
        }
    }

    /// The state that this coordinator began with has the model's layer norms now.
    pub fn completed(&mut self, state: &Arc<State>) {
        if let Some(floor) = self.floor.as_mut().filter(|floor| floor.layout() != state.layout()) {
            *floor = state.clone();
        }
    }

    /// A member has a rank in a generation that begins at `state`. `is_from_before`: it worked for an earlier coordinator of
    /// this run, at units that this one does not know.
    pub fn began(&mut self, id: MemberId, machine: HostDevice, is_from_before: bool, state: Arc<State>) {
        if self.members.contains_key(&id) {
            return;
        }
        let burden = self.gone.get(&machine).or(self.floor.as_ref().filter(|_| is_from_before));
        let clean = burden.map_or_else(|| state.clone(), |burden| self.earlier(burden, &state));
        self.members.insert(id, Audited { machine, clean });
    }

    /// An audit found a member's row right in the unit after `before`.
    pub fn passed(&mut self, id: MemberId, before: Arc<State>) {
        if let Some(audited) = self.members.get_mut(&id) {
            audited.clean = before;
            self.has_audited = true;
            self.gone.remove(&audited.machine);
        }
    }

    /// A member is gone; its rows since its last audit stay unaudited.
    pub fn left(&mut self, id: MemberId) {
        if let Some(Audited { machine, clean }) = self.members.remove(&id) {
            let burden = self.gone.get(&machine).map_or_else(|| clean.clone(), |gone| self.earlier(gone, &clean));
            self.gone.insert(machine, burden);
        }
    }

    /// The latest state without an unaudited row of these members' machines; `None` if none of them ever had a rank.
    pub fn state_without(&self, ids: impl Iterator<Item = MemberId>) -> Option<Arc<State>> {
        let mut found: Option<Arc<State>> = None;
        for audited in ids.filter_map(|id| self.members.get(&id)) {
            for state in std::iter::once(&audited.clean).chain(self.gone.get(&audited.machine)) {
                found = Some(found.map_or_else(|| state.clone(), |found| self.earlier(&found, state)));
            }
        }
        found
    }

    /// A member's rows are in no state any more: the run went back.
    pub fn forget(&mut self, id: MemberId) {
        if let Some(Audited { machine, .. }) = self.members.remove(&id) {
            self.gone.remove(&machine);
        }
    }

    /// The run goes back to `state`: later ones are void.
    pub fn cut_after(&mut self, state: &Arc<State>) {
        let unit = |state: &State| self.units.index(state.position());
        let members = self.members.values_mut().map(|audited| &mut audited.clean);
        for clean in members.chain(self.gone.values_mut()).chain(self.floor.as_mut()) {
            if unit(clean) > unit(state) {
                *clean = state.clone();
            }
        }
    }

    /// The ranks of `members`, in the order in which they are to be audited: longest without an audit first.
    pub fn order(&self, members: &[MemberId]) -> Vec<usize> {
        let clean = |rank: &usize| self.members.get(&members[*rank]).map(|audited| &audited.clean);
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|rank| clean(rank).map(|state| self.units.index(state.position())));
        order
    }

    /// Machines that left for good before they were audited again, and the state before their rows; none in a run that
    /// has no audits.
    pub fn never_audited(&self) -> Vec<(HostDevice, u64)> {
        let gone = self.gone.iter().filter(|_| self.has_audited);
        gone.map(|(machine, state)| (machine.clone(), state.step())).collect()
    }

    /// Every machine that has unaudited rows in the run, and the state before them.
    pub fn machines(&self) -> BTreeMap<HostDevice, Arc<State>> {
        let mut machines = self.gone.clone();
        for Audited { machine, clean } in self.members.values() {
            let state = machines.get(machine).map_or_else(|| clean.clone(), |other| self.earlier(other, clean));
            machines.insert(machine.clone(), state);
        }
        machines
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;
    use numalign_projector::Layout;

    use super::*;

    fn units() -> Schedule {
        Schedule::of_run(&Config::with(&[]).unwrap())
    }

    /// After so many updates.
    fn state(step: u64) -> Arc<State> {
        let recipe = Config::with(&[]).unwrap().recipe;
        let mut state = State::initial(Layout::of(&recipe, 2, 0), 1);
        for _ in 0..step {
            state.update(&vec![1.0; state.layout().row_len()], &recipe).unwrap();
        }
        Arc::new(state)
    }

    fn on(host: &str) -> HostDevice {
        HostDevice { host: host.to_owned(), device: "cpu".to_owned() }
    }

    fn back_to(audits: &CleanAudits, ids: &[u64]) -> Option<u64> {
        audits.state_without(ids.iter().map(|id| MemberId(*id))).map(|state| state.step())
    }

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const C: MemberId = MemberId(3);

    #[test]
    fn a_rank_is_known_right_up_to_its_last_audit_or_its_beginning() {
        let mut audits = CleanAudits::new(units());
        assert_eq!(back_to(&audits, &[1]), None);
        audits.began(A, on("a"), false, state(0));
        audits.began(B, on("b"), false, state(4));
        audits.passed(A, state(9));
        audits.began(A, on("a"), false, state(12));
        assert_eq!(
            (back_to(&audits, &[1]), back_to(&audits, &[2]), back_to(&audits, &[1, 2])),
            (Some(9), Some(4), Some(4))
        );
        assert_eq!(audits.order(&[A, B]), [1, 0], "longest without an audit first");
    }

    #[test]
    fn what_a_process_left_unaudited_burdens_the_next_on_its_machine() {
        let mut audits = CleanAudits::new(units());
        audits.began(A, on("a"), false, state(0));
        audits.passed(A, state(3));
        audits.left(A);
        audits.began(B, on("a"), false, state(7));
        audits.began(C, on("c"), false, state(7));
        assert_eq!((back_to(&audits, &[2]), back_to(&audits, &[3])), (Some(3), Some(7)));
        assert_eq!(audits.machines().values().map(|state| state.step()).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(audits.never_audited(), [(on("a"), 3)]);
        audits.passed(B, state(8));
        assert_eq!(audits.never_audited(), []);
        audits.left(B);
        audits.began(MemberId(4), on("a"), false, state(9));
        assert_eq!(back_to(&audits, &[4]), Some(8));
        audits.forget(MemberId(4));
        assert_eq!(audits.machines().len(), 1);
    }

    #[test]
    fn going_back_makes_later_states_void() {
        let mut audits = CleanAudits::new(units());
        for (id, host, step) in [(A, "a", 2), (B, "b", 5), (C, "c", 6)] {
            audits.began(id, on(host), false, state(0));
            audits.passed(id, state(step));
        }
        audits.left(C);
        audits.cut_after(&state(4));
        assert_eq!(audits.machines().values().map(|state| state.step()).collect::<Vec<_>>(), [2, 4, 4]);
    }

    #[test]
    fn a_successor_knows_what_the_folder_says_and_begins_there_for_the_rest() {
        let known = BTreeMap::from([(on("a"), state(2)), (on("b"), state(9))]);
        let mut audits = CleanAudits::new(units()).continued(Some(state(5)), known);
        for (id, host, is_from_before) in [(1, "a", true), (2, "b", true), (3, "c", true), (4, "d", false)] {
            audits.began(MemberId(id), on(host), is_from_before, state(8));
        }
        let found: Vec<Option<u64>> = (1..5).map(|id| back_to(&audits, &[id])).collect();
        assert_eq!(found, [Some(2), Some(5), Some(5), Some(8)]);
    }
}
