//! States that this rank computed and the coordinator has not committed yet, and the committed one before them: what a
//! worker offers a coordinator that starts anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use numalign_data::Schedule;
use numalign_projector::State;

/// The newest committed state and the uncommitted ones after it, by the units behind them. The committed one outlives
/// the coordinator.
#[derive(Clone)]
pub(crate) struct UncommittedStates {
    units: Schedule,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Default)]
struct Recent {
    states: BTreeMap<u64, Arc<State>>,
    /// The coordinator's MAC of the first of them, the committed one.
    mac: Vec<u8>,
    /// Rollbacks of the run before them.
    rollback: u64,
}

impl UncommittedStates {
    /// No state of a run with these units yet.
    pub fn new(units: Schedule) -> Self {
        Self { units, recent: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins with this committed state and its MAC, after so many rollbacks.
    pub fn restart(&self, state: Arc<State>, mac: Vec<u8>, rollback: u64) {
        let states = BTreeMap::from([(self.units.index(state.position()), state)]);
        *self.lock() = Recent { states, mac, rollback };
    }

    /// This rank computed a state that is not committed yet.
    pub fn computed(&self, state: Arc<State>) {
        self.lock().states.insert(self.units.index(state.position()), state);
    }

    /// Everything up to `unit`, whose state has this MAC, is committed: older states are dropped.
    pub fn committed(&self, unit: u64, mac: Vec<u8>) {
        let mut recent = self.lock();
        if recent.states.contains_key(&unit) {
            *recent = Recent { states: recent.states.split_off(&unit), mac, rollback: recent.rollback };
        }
    }

    /// The newest state that is certainly committed, its MAC, and the rollbacks before it.
    pub fn committed_state(&self) -> Option<(Arc<State>, Vec<u8>, u64)> {
        let recent = self.lock();
        let state = recent.states.values().next()?;
        Some((state.clone(), recent.mac.clone(), recent.rollback))
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;
    use numalign_projector::Layout;

    use super::*;

    #[test]
    fn commits_drop_what_came_before() {
        let config = Config::with(&[]).unwrap();
        let mut state = State::initial(Layout::of(&config.recipe, 4, 0), 7);
        let gradient = vec![1e-3; state.layout().row_len()];
        let states = UncommittedStates::new(Schedule::of_run(&config));
        assert_eq!(states.committed_state(), None);
        states.restart(Arc::new(state.clone()), vec![0], 0);
        for _ in 0..3 {
            state.update(&gradient, &config.recipe).unwrap();
            states.computed(Arc::new(state.clone()));
        }
        let committed = || states.committed_state().map(|(state, mac, _)| (state.step(), mac)).unwrap();
        assert_eq!(committed(), (0, vec![0]));
        states.committed(2, vec![2]);
        assert_eq!(committed(), (2, vec![2]));
        // A unit of another generation.
        states.committed(9, vec![9]);
        assert_eq!(committed(), (2, vec![2]));
        states.restart(Arc::new(state), vec![3], 2);
        assert_eq!(committed(), (3, vec![3]));
        assert_eq!(states.committed_state().map(|(.., rollback)| rollback), Some(2));
    }
}
