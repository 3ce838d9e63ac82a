//! The settings while they are read: what follows from others, and the one form in which each is stored.

use crate::choice::{Distribution, Pooling, Solver, TargetEncoding, ValueEncoding};
use crate::error::ParseError;
use crate::key::{Part, keys};
use crate::keys::Settings;
use crate::raw::Raw;

impl Settings {
    /// Reads the keys of one part, in the table's order, and gives back what is wrong with them.
    pub(crate) fn read<'a>(
        &mut self,
        part: Part,
        written: impl Fn(&'static str) -> Option<&'a Raw>,
    ) -> Vec<(&'static str, ParseError)> {
        let of_part = keys().iter().filter(|key| key.part == part);
        of_part.filter_map(|key| (key.read)(self, written(key.name)).err().map(|error| (key.name, error))).collect()
    }

    /// Forgets the values that their keys would not take, and says why.
    pub(crate) fn drop_invalid(&mut self) -> Vec<(&'static str, ParseError)> {
        keys().iter().filter_map(|key| (key.check)(self).err().map(|error| (key.name, error))).collect()
    }

    /// How targets are encoded.
    pub(crate) fn target_encoding(&self) -> Option<TargetEncoding> {
        Some(self.target?.unwrap_or(TargetEncoding::following(self.value_encoding?)))
    }

    /// How generated values are drawn.
    pub(crate) fn value_distribution(&self) -> Option<Distribution> {
        Some(self.distribution?.unwrap_or(Distribution::following(self.value_encoding?)))
    }

    /// Whether values pass through a logarithm anywhere.
    pub(crate) fn is_logarithmic(&self) -> Option<bool> {
        let (target, distribution) = (self.target_encoding()?, self.value_distribution()?);
        Some(
            self.value_encoding? == ValueEncoding::Signlog
                || target == TargetEncoding::Signlog
                || distribution == Distribution::Log,
        )
    }

    /// Brings what was written into the one form in which it is stored.
    pub(crate) fn normalise(&mut self) {
        self.dataset_input = self.dataset_input.take().map(|set| set.filter(|name| name != "input"));
        self.dataset_output = self.dataset_output.take().map(|set| set.filter(|name| name != "output"));
        self.dataset_eval_share = self.dataset_eval_share.map(|set| set.filter(|share| *share > 0.0));
        // So that one setting serves every stage of `launch all`.
        if (self.solver, self.train_input_projection) == (Some(Solver::Alternate), Some(false)) {
            self.solver = Some(Solver::Exact);
        }
        if self.solver.is_some_and(|solver| solver != Solver::Alternate) {
            self.solve_every = self.solve_every.map(|_| None);
            self.solve_samples = self.solve_samples.map(|_| None);
        }
        // One place has one form.
        if let Some([only]) = self.taps.as_deref()
            && (self.layer, self.pooling) == (Some(None), Some(Pooling::Last))
        {
            (self.layer, self.pooling) = (Some(only.layer), Some(only.pooling));
            self.taps = Some(Vec::new());
        }
        if let Some(values) = self.value_encoding {
            self.target = self.target.map(|set| set.filter(|target| *target != TargetEncoding::following(values)));
            self.distribution =
                self.distribution.map(|set| set.filter(|drawn| *drawn != Distribution::following(values)));
        }
    }
}
