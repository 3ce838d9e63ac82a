//! `launch --chaos`: which fault is due when, from a seed. Decides only; [`super::inject`] does the killing, and notes
//! here how long the run needed to go on.

use std::fmt;
use std::time::{Duration, Instant};

use numalign_data::{Domain, SampleRng};

use crate::error::CliError;

/// How a specification is written, for the help.
pub const SYNTAX: &str = "\
kill=TIME kills a worker about every TIME, hang=TIME[/TIME] stops one (for the second time; 5s), coordinator=TIME kills \
the coordinator; kills=N, hangs=N, coordinators=N bound their numbers; wrong=STEP lets one worker compute wrong numbers \
from that step on, nan=STEP numbers that are not finite, slow=MILLISECONDS makes one slow per micro-batch, \
freeze=STEP stops the device of one's first process at that step while its heartbeat goes on; seed=N (0). Separated by commas, such as \
seed=7,kill=1s,kills=100,hang=8s/5s,coordinator=15s";

/// How long a worker hangs, where the specification does not say.
const HANG: Duration = Duration::from_secs(5);

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillWorker,
    /// SIGSTOP, and SIGCONT after this time.
    HangWorker(Duration),
    KillCoordinator,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::KillWorker => "worker kill",
            Fault::HangWorker(_) => "worker hang",
            Fault::KillCoordinator => "coordinator kill",
        })
    }
}

/// One kind of fault and when it comes next.
#[derive(Debug, Clone)]
struct Plan {
    fault: Fault,
    /// Mean time between two of them.
    every: Duration,
    left: Option<u64>,
    next: Option<Instant>,
}

/// A parsed specification and its course.
#[derive(Debug, Clone)]
pub struct Chaos {
    seed: u64,
    drawn: u64,
    plans: Vec<Plan>,
    /// What one worker is told to do wrong, as [`numalign_worker::fault::VARIABLE`] has it.
    pub worker_faults: Option<String>,
}

impl Chaos {
    /// Reads a specification; see [`SYNTAX`].
    pub fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |part: &str, why: &str| CliError::usage(format!("--chaos: `{part}` {why}")).with_hint(SYNTAX);
        let mut chaos = Self { seed: 0, drawn: 0, plans: Vec::new(), worker_faults: None };
        let (mut limits, mut worker_faults) = (Vec::new(), Vec::new());
        for part in text.split(',') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(wrong(part, "is not KEY=VALUE"));
            };
            let number = || value.parse::<u64>().map_err(|_| wrong(part, "needs a whole number"));
            let time = |value: &str| match numalign_config::duration(value) {
                Ok(time) if !time.is_zero() => Ok(time),
                Ok(_) => Err(wrong(part, "needs a time above 0")),
                Err(why) => Err(wrong(part, &why)),
            };
            match key {
                "seed" => chaos.seed = number()?,
                "kill" => chaos.add(Fault::KillWorker, time(value)?),
                "coordinator" => chaos.add(Fault::KillCoordinator, time(value)?),
                "hang" => {
                    let (every, length) = match value.split_once('/') {
                        Some((every, length)) => (time(every)?, time(length)?),
                        None => (time(value)?, HANG),
                    };
                    chaos.add(Fault::HangWorker(length), every);
                }
                "kills" | "hangs" | "coordinators" => limits.push((key, number()?)),
                "wrong" | "nan" | "slow" | "freeze" => {
                    number()?;
                    worker_faults.push(part);
                }
                _ => return Err(wrong(part, "is not known")),
            }
        }
        for (key, most) in limits {
            let kind = |fault: &Fault| match fault {
                Fault::KillWorker => "kills",
                Fault::HangWorker(_) => "hangs",
                Fault::KillCoordinator => "coordinators",
            };
            let Some(plan) = chaos.plans.iter_mut().find(|plan| kind(&plan.fault) == key) else {
                return Err(wrong(key, "bounds something that is not asked for"));
            };
            plan.left = Some(most);
        }
        chaos.worker_faults = (!worker_faults.is_empty()).then(|| worker_faults.join(","));
        Ok(chaos)
    }

    fn add(&mut self, fault: Fault, every: Duration) {
        self.plans.push(Plan { fault, every, left: None, next: None });
    }

    fn draw(&mut self) -> SampleRng {
        self.drawn += 1;
        SampleRng::new(self.seed, Domain::Chaos, "chaos", self.drawn)
    }

    /// The fault that is due, if one is. Times between two are uniform from half to one and a half of their mean.
    pub fn due(&mut self, now: Instant) -> Option<Fault> {
        for index in 0..self.plans.len() {
            if self.plans[index].left == Some(0) {
                continue;
            }
            let due = self.plans[index].next.is_some_and(|next| now >= next);
            if self.plans[index].next.is_some() && !due {
                continue;
            }
            let pause = self.plans[index].every.mul_f64(0.5 + self.draw().uniform());
            let plan = &mut self.plans[index];
            plan.next = Some(now + pause);
            if due {
                plan.left = plan.left.map(|left| left - 1);
                return Some(plan.fault);
            }
        }
        None
    }

    /// When the next fault is due; `now` while one is not planned yet.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let left = self.plans.iter().filter(|plan| plan.left != Some(0));
        left.map(|plan| plan.next.unwrap_or(now)).min()
    }

    /// The fault found nothing to hit: it comes again soon, and is not counted.
    pub fn reschedule(&mut self, fault: Fault, now: Instant) {
        if let Some(plan) = self.plans.iter_mut().find(|plan| plan.fault == fault) {
            plan.left = plan.left.map(|left| left + 1);
            plan.next = Some(now + Duration::from_millis(100));
        }
    }

    /// One of `count` victims.
    pub fn victim(&mut self, count: usize) -> usize {
        self.draw().below(count as u64) as usize
    }
}

/// A fault whose recovery is waited for.
#[derive(Debug, Clone, Copy)]
struct Open {
    fault: Fault,
    since: Instant,
    /// Committed step and generation when it was done.
    step: u64,
    generation: u64,
    /// For a killed coordinator: the step that the new one started from, once it answered.
    restarted_from: Option<u64>,
}

/// Faults done and times until the run went on: a commit of a later generation.
#[derive(Debug, Default)]
pub struct Record {
    open: Vec<Open>,
    closed: Vec<(Fault, Duration)>,
}

impl Record {
    pub fn begin(&mut self, fault: Fault, since: Instant, step: u64, generation: u64) {
        self.open.push(Open { fault, since, step, generation, restarted_from: None });
    }

    /// Whether some recovery is waited for.
    pub fn waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// What the coordinator said just now. After its own kill only a new one can say anything.
    pub fn observe(&mut self, now: Instant, step: u64, generation: u64) {
        let mut still = Vec::new();
        for mut open in self.open.drain(..) {
            let recovered = match open.fault {
                Fault::KillCoordinator => {
                    let from = *open.restarted_from.get_or_insert(step);
                    step > from && step > open.step
                }
                _ => step > open.step && generation != open.generation,
            };
            match recovered {
                true => self.closed.push((open.fault, now - open.since)),
                false => still.push(open),
            }
        }
        self.open = still;
    }

    /// The run is over, and with it every recovery.
    pub fn end(&mut self, now: Instant) {
        for open in self.open.drain(..) {
            self.closed.push((open.fault, now - open.since));
        }
    }

    /// A line per kind: how many, and the median and the longest time until the run went on.
    pub fn table(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for kind in ["worker kill", "worker hang", "coordinator kill"] {
            let mut times: Vec<Duration> =
                self.closed.iter().filter(|(fault, _)| fault.to_string() == kind).map(|(_, time)| *time).collect();
            times.sort();
            if let Some(longest) = times.last() {
                lines.push(format!(
                    "chaos: {} {kind}s, all recovered from; until the next commit: median {:.3} s, longest {:.3} s",
                    times.len(),
                    times[times.len() / 2].as_secs_f64(),
                    longest.as_secs_f64()
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_is_read_or_refused_with_a_hint() {
        let chaos = Chaos::parse("seed=7,kill=1s,kills=3,hang=8s/2s,coordinator=15s,wrong=200,slow=5,freeze=9")
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(chaos.plans.len(), 3);
        assert_eq!(chaos.plans[0].left, Some(3));
        assert_eq!(chaos.plans[1].fault, Fault::HangWorker(Duration::from_secs(2)));
        assert_eq!(chaos.worker_faults.as_deref(), Some("wrong=200,slow=5,freeze=9"));
        for bad in ["", "kill", "kill=0s", "kill=often", "kills=3", "tea=1s", "seed=x", "hang=1s/", "wrong=soon"] {
            let refusal = Chaos::parse(bad).err().map(|failure| (failure.code, failure.to_string()));
            let Some((2, text)) = refusal else { panic!("{bad}: {refusal:?}") };
            assert!(text.contains("--chaos") && text.contains("hint:"), "{text}");
        }
    }

    #[test]
    fn faults_come_about_as_often_as_asked_up_to_their_number() {
        let mut chaos = Chaos::parse("seed=1,kill=1s,kills=50").unwrap_or_else(|e| panic!("{e}"));
        let start = Instant::now();
        let mut times = Vec::new();
        for tick in 0..10_000 {
            let now = start + Duration::from_millis(10 * tick);
            if chaos.due(now) == Some(Fault::KillWorker) {
                times.push(now);
            }
        }
        assert_eq!(times.len(), 50);
        let mean = (times[49] - times[0]).as_secs_f64() / 49.0;
        assert!((0.85..1.15).contains(&mean), "{mean}");
        assert_eq!(chaos.next_due(start), None, "all of them came");
        chaos.reschedule(Fault::KillWorker, start);
        assert_eq!(chaos.next_due(start), Some(start + Duration::from_millis(100)));
        assert_eq!(chaos.due(start + Duration::from_secs(1)), Some(Fault::KillWorker), "a miss does not count");
    }

    #[test]
    fn a_recovery_is_a_commit_of_a_later_generation() {
        let (start, later) = (Instant::now(), |ms| Duration::from_millis(ms));
        let mut record = Record::default();
        record.begin(Fault::KillWorker, start, 10, 4);
        record.observe(start + later(5), 11, 4);
        assert!(record.table().is_empty(), "a step that was in flight is no recovery");
        record.observe(start + later(20), 11, 5);
        assert_eq!(record.table().len(), 1);
        record.begin(Fault::KillCoordinator, start, 20, 6);
        record.observe(start + later(300), 21, 1);
        assert_eq!(record.table().len(), 1, "it answers, and has committed nothing yet");
        record.observe(start + later(500), 22, 1);
        assert!(record.table()[1].contains("1 coordinator kill") && record.table()[1].contains("0.500 s"));
    }
}
