//! A picture as PNG, at twice its size in pixels. Called by [`super::Destination`].

use tiny_skia::{Color, FillRule, Paint, Path, PathBuilder, Pixmap, Stroke, Transform};
use ttf_parser::{Face, OutlineBuilder};

use super::{Anchor, Mark, Picture, Point};
use crate::error::CliError;

/// Letters of every label: printable ASCII of DejaVu Sans (`assets/README.md`).
const FONT: &[u8] = include_bytes!("../../assets/dejavu-sans-ascii.ttf");

/// Pixels per unit of the picture: sharp on today's screens and in print.
const SCALE: f32 = 2.0;

/// The whole file.
pub fn write(picture: &Picture) -> Result<Vec<u8>, CliError> {
    let failed = |why: &str| CliError::new(format!("the picture cannot be drawn: {why}"));
    let font = Face::parse(FONT, 0).map_err(|error| failed(&error.to_string()))?;
    let (width, height) = ((picture.width as f32 * SCALE).ceil(), (picture.height as f32 * SCALE).ceil());
    let mut sheet = Pixmap::new(width as u32, height as u32).ok_or_else(|| failed("it has no area"))?;
    sheet.fill(Color::WHITE);
    let scale = Transform::from_scale(SCALE, SCALE);
    for mark in &picture.marks {
        match mark {
            Mark::Text { at, size, anchor, turned, text } => {
                let (path, length) = letters(&font, text, *size as f32);
                let start = match anchor {
                    Anchor::Middle => -length / 2.0,
                    Anchor::End => -length,
                };
                let turn = Transform::from_rotate(if *turned { -90.0 } else { 0.0 });
                let place = Transform::from_translate(start, 0.0)
                    .post_concat(turn)
                    .post_concat(Transform::from_translate(at.0 as f32, at.1 as f32))
                    .post_concat(scale);
                if let Some(path) = path {
                    sheet.fill_path(&path, &ink(0, 1.0), FillRule::Winding, place, None);
                }
            }
            Mark::Line { points, grey } => {
                if let Some(path) = line(points) {
                    sheet.stroke_path(&path, &ink(*grey, 1.0), &Stroke::default(), scale, None);
                }
            }
            Mark::Dots { points, radius, grey, opacity } => {
                for (x, y) in points {
                    if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                        sheet.fill_path(&path, &ink(*grey, *opacity), FillRule::Winding, scale, None);
                    }
                }
            }
        }
    }
    sheet.encode_png().map_err(|error| failed(&error.to_string()))
}

fn ink(grey: u8, opacity: f32) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(grey, grey, grey, (255.0 * opacity) as u8);
    paint
}

fn line(points: &[Point]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (place, (x, y)) in points.iter().enumerate() {
        match place {
            0 => builder.move_to(*x as f32, *y as f32),
            _ => builder.line_to(*x as f32, *y as f32),
        }
    }
    builder.finish()
}

/// The outlines of a text that begins at the origin of its base line, and its length. Letters that the font lacks leave no
/// mark.
fn letters(font: &Face<'_>, text: &str, size: f32) -> (Option<Path>, f32) {
    let scale = size / f32::from(font.units_per_em());
    let mut outline = Outline { path: PathBuilder::new(), scale, x: 0.0 };
    for letter in text.chars() {
        let Some(glyph) = font.glyph_index(letter) else {
            continue;
        };
        // A blank has no outline.
        let _ = font.outline_glyph(glyph, &mut outline);
        outline.x += scale * f32::from(font.glyph_hor_advance(glyph).unwrap_or(0));
    }
    (outline.path.finish(), outline.x)
}

/// Takes a glyph's outline, in font units upwards, to where the letter stands.
struct Outline {
    path: PathBuilder,
    scale: f32,
    x: f32,
}

impl Outline {
    fn place(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + self.scale * x, -self.scale * y)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.place(x1, y1), self.place(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of the sheet's pixels that are not white, in a picture of 40 by 20.
    fn inked(marks: Vec<Mark>) -> f64 {
        let bytes = write(&Picture { width: 40.0, height: 20.0, marks }).ok().unwrap();
        let sheet = Pixmap::decode_png(&bytes).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (80, 40));
        let inked = sheet.pixels().iter().filter(|pixel| pixel.red() < 250).count();
        inked as f64 / sheet.pixels().len() as f64
    }

    #[test]
    fn every_mark_leaves_ink_where_it_stands() {
        assert_eq!(inked(Vec::new()), 0.0);
        let dots = Mark::Dots { points: vec![(20.0, 10.0)], radius: 5.0, grey: 0, opacity: 1.0 };
        let disc = std::f64::consts::PI * 25.0 / 800.0;
        assert!((inked(vec![dots]) - disc).abs() < 0.02);
        let line = Mark::Line { points: vec![(0.0, 10.0), (40.0, 10.0)], grey: 0 };
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
