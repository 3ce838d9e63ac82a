//! Whether the model can take a sample, found out without running it.

use numalign_config::Stage;
use numalign_data::Sample;
use numalign_model::Piece;

use crate::engine::Engine;
use crate::error::EngineError;

impl Engine {
    /// Bytes of the longest text that the model can take whatever it says; 0 where only tokenising tells, and no bound in
    /// stage `nn`, which has no texts.
    ///
    /// # Errors
    /// The tokenizer's template of special tokens cannot be applied.
    pub fn longest_text(&self) -> Result<u64, EngineError> {
        if self.recipe.stage == Stage::Nn {
            return Ok(u64::MAX);
        }
        let tokenizer = self.lm.tokenizer();
        let has_row = |id| self.lm.embed_tokens(&[id]).is_ok();
        if !tokenizer.largest_id().is_some_and(has_row) {
            // A text may name a token that the model has no row for.
            return Ok(0);
        }
        let mut most = self.lm.max_positions();
        if self.recipe.add_special_tokens {
            let around = tokenizer.around()?;
            most = most.saturating_sub(around.before.len() + around.after.len());
        }
        Ok(tokenizer.longest_text(most) as u64)
    }

    /// Looks for the first of `samples` that the model cannot take.
    ///
    /// # Errors
    /// What is wrong with it: too long, no tokens, a token that the model does not have, numbers that overflow.
    pub fn check_samples(&self, samples: &[Sample]) -> Result<(), EngineError> {
        for sample in samples {
            for piece in self.prepare(sample)?.pieces {
                if let Piece::Tokens(ids) = piece
                    && let Some(largest) = ids.into_iter().max()
                {
                    let row = self.lm.embed_tokens(&[largest]);
                    row.map_err(|source| EngineError::Sample { index: sample.index, source })?;
                }
            }
        }
        Ok(())
    }
}
