//! Sends the doubtful samples of the data file to the worker that checks them, batch by batch.

use std::time::Instant;

use numalign_data::Sample;
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;

use super::Driver;
use crate::background::sample_check::{FileRows, SampleCheck};
use crate::machine::{Cause, Effect, Event, MemberId};

impl Driver {
    /// Starts the check with `member`; it ends with [`Event::SamplesChecked`].
    pub(super) fn start_sample_check(&mut self, member: MemberId, longest_text: u64) {
        let rows = FileRows::of(&self.streams);
        let started = SampleCheck::start(member, rows, &self.config.recipe, longest_text);
        match started {
            Ok(check) => self.sample_check = Some(check),
            // Another worker is asked as soon as the machine hears of it.
            Err(error) => self.disconnect(member, format!("its samples cannot be checked: {error}")),
        }
    }

    /// The next doubtful samples go to the worker; none are left at the end.
    pub(super) fn check_samples(&mut self, batch: Option<Vec<Sample>>) -> Vec<Effect> {
        let Some(check) = &mut self.sample_check else {
            return Vec::new();
        };
        let member = check.member;
        let Some(samples) = batch else {
            self.sample_check = None;
            return self.machine.handle(Instant::now(), Event::SamplesChecked(member, Ok(())));
        };
        check.is_waiting = true;
        let samples = samples.into_iter().map(proto::Sample::from).collect();
        self.send(member, Message::SampleCheck(proto::SampleCheck { samples }));
        Vec::new()
    }

    /// The worker's answer for one batch: nothing is wrong, or what, with the index of the sample.
    pub(super) fn samples_checked(&mut self, member: MemberId, checked: Result<(), (u64, String)>) -> Vec<Effect> {
        match &mut self.sample_check {
            Some(check) if check.member == member && check.is_waiting => check.is_waiting = false,
            // Of a check that another worker has now.
            _ => return Vec::new(),
        }
        if checked.is_ok() {
            return Vec::new();
        }
        self.sample_check = None;
        let checked =
            checked.map_err(|(index, problem)| match FileRows::of(&self.streams).named(index, &self.config) {
                Some(row) => format!("{row}: {problem}"),
                None => problem,
            });
        self.machine.handle(Instant::now(), Event::SamplesChecked(member, checked))
    }

    /// A worker cannot go on because of a sample. One that is not ready yet means a sample of the first micro-batch, which
    /// it computes on trial, and which comes from the training rows.
    pub(super) fn sample_failed(&mut self, member: MemberId, index: u64, problem: &str) -> Vec<Effect> {
        let is_trial = self.machine.members().get(&member).is_some_and(|member| member.worker_ready.is_none());
        let row = self.streams.train.row_number(index).filter(|_| is_trial);
        let why = match (row, &self.config.run.dataset_file) {
            (Some(row), Some(file)) => format!("row {row} of {}: {problem}", file.display()),
            _ => format!("sample {index}: {problem}"),
        };
        self.machine.handle(Instant::now(), Event::PermanentFailure(member, Cause::Data, why))
    }
}
