//! Machines that compute wrong numbers: they are excluded, and the run goes back to the last state that holds no unaudited
//! row of theirs.
//!
//! A device on which other workers compute right numbers meanwhile, such as the processor of a machine with a worker for
//! each core, is not faulty as a whole: the process alone is excluded, and others may still come to that device.

use super::Machine;
use super::clean_audits::HostDevice;
use super::events::{Effect, MemberId, Process, RollBack};

/// A worker that computed wrong numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excluded {
    process: Process,
    machine: HostDevice,
    /// Others on that device computed right numbers at that time.
    is_shared: bool,
}

impl Machine {
    /// Evicts workers that compute wrong numbers, with the reason for each; they, and devices that had no other worker, are
    /// not admitted again in this run. What they computed since they were last audited is made again.
    pub(super) fn exclude(&mut self, faulty: &[(MemberId, String)], effects: &mut Vec<Effect>) {
        let went_back = self.roll_back(faulty, effects);
        if !faulty.is_empty() {
            // Whoever was right, it is known now.
            self.dispute = None;
        }
        let shared: Vec<bool> = faulty.iter().map(|(id, _)| self.shares_its_machine(*id, faulty)).collect();
        for ((id, why), is_shared) in faulty.iter().zip(shared) {
            let machine = self.machine_of(*id);
            if let (Some(member), Some(machine)) = (self.members.get(id), machine) {
                let process = member.join_request.process.clone();
                self.excluded.push(Excluded { process: process.clone(), machine: machine.clone(), is_shared });
                if is_shared {
                    let words = format!(
                        "other workers on {} of host {} compute right numbers: new ones are still admitted there, and this \
                         one's place stays empty unless you start one",
                        machine.device, machine.host
                    );
                    effects.push(Effect::Warn(words));
                }
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

    /// Whether another worker that had a rank, and is none of `faulty`, is on the same device of the same host.
    fn shares_its_machine(&self, id: MemberId, faulty: &[(MemberId, String)]) -> bool {
        let is_faulty = |other: &MemberId| faulty.iter().any(|(faulty, _)| faulty == other);
        let others = self.members.iter().filter(|(other, member)| member.has_trained && !is_faulty(other));
        let machine = self.machine_of(id);
        machine.is_some() && others.into_iter().any(|(other, _)| self.machine_of(*other) == machine)
    }

    /// Why a worker that was excluded, or one on a device that computed wrong numbers, is not admitted.
    pub(super) fn check_not_excluded(&self, process: &Process, device: &str) -> Result<(), String> {
        let host = &process.host;
        for bad in &self.excluded {
            if bad.process == *process {
                return Err(format!("it computed wrong numbers on {device} of host {host} earlier in this run"));
            }
            if !bad.is_shared && bad.machine.host == *host && bad.machine.device == device {
                return Err(format!("{device} of host {host} computed wrong numbers earlier in this run"));
            }
        }
        Ok(())
    }

    /// Host and device of a member whose model is loaded.
    pub(super) fn machine_of(&self, id: MemberId) -> Option<HostDevice> {
        let member = self.members.get(&id)?;
        let device = member.worker_ready.as_ref()?.device.clone();
        Some(HostDevice { host: member.join_request.process.host.clone(), device })
    }
}
