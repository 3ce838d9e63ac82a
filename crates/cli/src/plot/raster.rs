//! A drawn SVG as PNG, at twice its size in pixels and with the font in the binary.

use std::sync::Arc;

use resvg::render;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{Options, Tree};

use crate::error::CliError;

/// Letters of every label: printable ASCII of DejaVu Sans (`assets/README.md`).
const FONT: &[u8] = include_bytes!("../../assets/dejavu-sans-ascii.ttf");

/// Pixels per unit of the picture: sharp on today's screens and in print.
const SCALE: f32 = 2.0;

/// The whole file.
///
/// # Errors
/// The SVG cannot be parsed, or has no area.
pub fn write(svg: &str) -> Result<Vec<u8>, CliError> {
    let failed = |why: &str| CliError::new(format!("the picture cannot be drawn: {why}"));
    // An empty database: fonts of the host would change the picture.
    let mut fonts = Database::new();
    fonts.load_font_data(FONT.to_vec());
    let options = Options { fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|error| failed(&error.to_string()))?;
    let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| failed("it is too large"))?;
    let mut sheet = Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("it has no area"))?;
    render(&tree, Transform::from_scale(SCALE, SCALE), &mut sheet.as_mut());
    sheet.encode_png().map_err(|error| failed(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Anchor, Dash, Ink, Mark, Picture, svg};

    /// Share of the sheet's pixels that are not white, in a picture of 40 by 20.
    fn inked(marks: Vec<Mark>) -> f64 {
        let bytes = write(&svg::write(&Picture { width: 40.0, height: 20.0, marks })).ok().unwrap();
        let sheet = Pixmap::decode_png(&bytes).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (80, 40));
        let inked = sheet.pixels().iter().filter(|pixel| pixel.red() < 250).count();
        inked as f64 / sheet.pixels().len() as f64
    }

    #[test]
    fn every_mark_leaves_ink_where_it_stands() {
        assert_eq!(inked(Vec::new()), 0.0);
        let dots = Mark::Dots { points: vec![(20.0, 10.0)], radius: 5.0, ink: Ink::Black, opacity: 1.0 };
        let disc = std::f64::consts::PI * 25.0 / 800.0;
        assert!((inked(vec![dots]) - disc).abs() < 0.02);
        let line = Mark::Line { points: vec![(0.0, 10.0), (40.0, 10.0)], ink: Ink::Black, dash: Dash::Solid };
        assert!((inked(vec![line]) - 0.05).abs() < 0.03);
        let text = |turned, text: &str| {
            let (at, size, anchor) = ((20.0, 14.0), 12.0, Anchor::Middle);
            vec![Mark::Text { at, size, anchor, turned, text: text.to_owned() }]
        };
        assert!(inked(text(false, "Ab1")) > 0.05 && inked(text(true, "H")) > 0.01);
        assert_eq!(inked(text(false, " ")), 0.0);
        assert_eq!(inked(text(false, "\u{4e00}")), 0.0, "what the font lacks is left out");
    }
}
