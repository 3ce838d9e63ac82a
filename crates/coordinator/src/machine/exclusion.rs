//! Machines that compute wrong numbers: they are excluded, and the run goes back to the last state that holds no unaudited
//! row of theirs.

use super::Machine;
use super::clean_audits::HostDevice;
use super::events::{Effect, MemberId, RollBack};

impl Machine {
    /// Evicts workers that compute wrong numbers, with the reason for each; their devices are not admitted again in this
    /// run. What they computed since they were last audited is made again.
    pub(super) fn exclude(&mut self, faulty: &[(MemberId, String)], effects: &mut Vec<Effect>) {
        let went_back = self.roll_back(faulty, effects);
        if !faulty.is_empty() {
            // Whoever was right, it is known now.
            self.dispute = None;
        }
        for (id, why) in faulty {
            let machine = self.machine_of(*id);
            if let (Some(member), Some(machine)) = (self.members.get(id), machine) {
                let process = member.join_request.process.clone();
                self.excluded.push(machine);
                self.refuse(*id, process, format!("excluded: {why}"), effects);
            }
            self.clean_audits.forget(*id);
            self.left(*id, &format!("excluded: {why}"), effects);
        }
        if let Some(why) = went_back {
            // Where the faulty one had no rank any more, a generation still runs.
            self.pause(&why, effects);
        }
    }

    /// Goes back to the last state without an unaudited row of `faulty`; says so, if any step is made again.
    fn roll_back(&mut self, faulty: &[(MemberId, String)], effects: &mut Vec<Effect>) -> Option<String> {
        let to = self.clean_audits.state_without(faulty.iter().map(|(id, _)| *id))?;
        let from = self.committed.clone()?;
        if self.unit_after(&to) >= self.unit_after(&from) {
            return None;
        }
        let who: Vec<String> = faulty.iter().map(|(id, _)| self.name(*id)).collect();
        let (who, first, last) = (who.join(" and "), to.step(), from.step());
        if !self.audits.are_on() {
            let words = format!("audits are off: steps {first} to {last} may hold wrong rows of {who}");
            effects.push(Effect::Warn(words));
            return None;
        }
        let why = format!(
            "going back from step {last} to step {first}, up to which the rows of {who} are known to be right; the steps \
             since then are made again"
        );
        self.rollbacks += 1;
        self.clean_audits.cut_after(&to);
        (self.suspects, self.about_data, self.solving) = (None, None, None);
        self.committed = Some(to.clone());
        effects.push(Effect::RollBack(RollBack { number: self.rollbacks, to, why: why.clone() }));
        Some(why)
    }

    /// Host and device of a member whose model is loaded.
    pub(super) fn machine_of(&self, id: MemberId) -> Option<HostDevice> {
        let member = self.members.get(&id)?;
        let device = member.worker_ready.as_ref()?.device.clone();
        Some(HostDevice { host: member.join_request.process.host.clone(), device })
    }
}
