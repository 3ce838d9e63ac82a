//! Pictures: panels of points and lines with labelled axes, as SVG or PNG. Every line has a dash of its own beside its
//! colour, so that they read without colour too.
//!
//! There is one drawing path: a picture becomes SVG text, and `resvg` rasterises that text for PNG. Letters come from one
//! small font in the binary, so hosts without fonts write the same picture.

pub mod axis;
pub mod panel;
mod raster;
mod svg;

use std::path::{Path, PathBuf};

use crate::error::CliError;

/// A point of a picture, in pixels from its upper left corner.
pub type Point = (f64, f64);

/// Where a text stands against its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Middle,
    End,
}

/// Colours that people with any colour vision tell apart (Okabe and Ito, "Color Universal Design", 2008).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Black,
    Blue,
    Vermilion,
    Green,
}

/// How a line is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dash {
    Solid,
    Long,
    Short,
    Dotted,
}

/// One thing to draw.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    Text {
        at: Point,
        size: f64,
        anchor: Anchor,
        /// Read from below.
        turned: bool,
        text: String,
    },
    Line {
        points: Vec<Point>,
        ink: Ink,
        dash: Dash,
    },
    Dots {
        points: Vec<Point>,
        radius: f64,
        ink: Ink,
        opacity: f32,
    },
}

/// A white sheet with marks, drawn in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    pub width: f64,
    pub height: f64,
    pub marks: Vec<Mark>,
}

impl Picture {
    /// The picture as a PNG file.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub fn png(&self) -> Result<Vec<u8>, CliError> {
        raster::write(&svg::write(self))
    }
}

/// The formats that a picture can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
}

/// A file to write a picture to, whose name says the format.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    path: PathBuf,
    format: Format,
}

impl Destination {
    /// The file of that name.
    ///
    /// # Errors
    /// A name that ends neither in .svg nor in .png.
    pub fn of(name: &str) -> Result<Self, CliError> {
        let path = PathBuf::from(name);
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let format = match extension.as_deref() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => {
                return Err(CliError::usage(format!("--plot {name} ends neither in .svg nor in .png"))
                    .with_hint("for example --plot run.png"));
            }
        };
        Ok(Self { path, format })
    }

    /// Where the picture goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the picture.
    ///
    /// # Errors
    /// The picture cannot be drawn, or the file cannot be written.
    pub fn write(&self, picture: &Picture) -> Result<(), CliError> {
        let bytes = match self.format {
            Format::Svg => svg::write(picture).into_bytes(),
            Format::Png => picture.png()?,
        };
        numalign_checkpoint::write_atomically(&self.path, &bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        assert_eq!(Destination::of("a.SVG").map(|file| file.format).ok(), Some(Format::Svg));
        assert_eq!(Destination::of("b/a.png").map(|file| file.format).ok(), Some(Format::Png));
        assert!(Destination::of("a.jpg").is_err() && Destination::of("png").is_err());
    }
}
