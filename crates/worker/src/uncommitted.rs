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
    recent: Arc<Mutex<BTreeMap<u64, Arc<State>>>>,
}

impl UncommittedStates {
    /// No state of a run with these units yet.
    pub fn new(units: Schedule) -> Self {
        Self { units, recent: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<State>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins with this committed state.
    pub fn restart(&self, state: Arc<State>) {
        let mut recent = self.lock();
        recent.clear();
        recent.insert(self.units.index(state.position()), state);
    }

    /// This rank computed a state that is not committed yet.
    pub fn computed(&self, state: Arc<State>) {
        self.lock().insert(self.units.index(state.position()), state);
    }

    /// Everything up to `unit` is committed: older states are dropped.
    pub fn committed(&self, unit: u64) {
        let mut recent = self.lock();
        if recent.contains_key(&unit) {
            *recent = recent.split_off(&unit);
        }
    }

    /// The newest state that is certainly committed.
    pub fn committed_state(&self) -> Option<Arc<State>> {
        self.lock().values().next().cloned()
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
        states.restart(Arc::new(state.clone()));
        for _ in 0..3 {
            state.update(&gradient, &config.recipe).unwrap();
            states.computed(Arc::new(state.clone()));
        }
        let committed_step = || states.committed_state().unwrap().step();
        assert_eq!(committed_step(), 0);
        states.committed(2);
        assert_eq!(committed_step(), 2);
        // A unit of another generation.
        states.committed(9);
        assert_eq!(committed_step(), 2);
        states.restart(Arc::new(state));
        assert_eq!(committed_step(), 3);
    }
}
