//! Which parts of the state a recipe trains, and which of them by gradient steps.

use std::ops::Range;

use numalign_config::{Recipe, Solver};

use crate::layout::Layout;

/// Which parts of the state a stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// The input projector.
    pub input: bool,
    /// The output projector.
    pub output: bool,
    /// The frozen model's layer norms.
    pub layer_norms: bool,
}

impl Trained {
    /// As the recipe says.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            input: recipe.train_input_projection,
            output: recipe.train_output_projection,
            layer_norms: recipe.train_layer_norms,
        }
    }

    /// What gradient steps change; the solver finds the rest.
    pub fn by_adam(recipe: &Recipe) -> Self {
        match recipe.solver {
            Solver::Adam | Solver::Alternate => Self::of(recipe),
            Solver::Exact => Self { input: false, output: false, layer_norms: false },
        }
    }

    /// The ranges of the flat vector that train, ascending.
    pub fn ranges(&self, layout: Layout) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        if self.input {
            ranges.push(layout.input());
        }
        if self.output {
            ranges.push(layout.output());
        }
        if self.layer_norms {
            ranges.push(layout.layer_norms());
        }
        ranges
    }

    /// Whether the tensor at `range` trains.
    pub fn covers(&self, layout: Layout, range: &Range<usize>) -> bool {
        self.ranges(layout).iter().any(|trained| trained.contains(&range.start))
    }
}
