//! A picture as SVG text.

use std::fmt::Write;

use super::{Anchor, Dash, Ink, Mark, Picture, Point};

/// The whole file.
pub fn write(picture: &Picture) -> String {
    let Picture { width, height, marks } = picture;
    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for mark in marks {
        match mark {
            Mark::Text { at, size, anchor, turned, text } => write_text(&mut svg, *at, *size, *anchor, *turned, text),
            Mark::Line { points, ink, dash } => {
                let (path, stroke, dashes) = (path(points), colour(*ink), dashes(*dash));
                let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\"{dashes}/>");
            }
            Mark::Dots { points, radius, ink, opacity } => {
                let _ = writeln!(svg, "<g fill=\"{}\" fill-opacity=\"{opacity}\">", colour(*ink));
                for (x, y) in points {
                    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>");
                }
                svg.push_str("</g>\n");
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn write_text(svg: &mut String, (x, y): Point, size: f64, anchor: Anchor, turned: bool, text: &str) {
    let anchor = match anchor {
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let turn = if turned { " rotate(-90)" } else { "" };
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text transform=\"translate({x:.1} {y:.1}){turn}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn path(points: &[Point]) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    path
}

fn colour(ink: Ink) -> &'static str {
    match ink {
        Ink::Black => "#222222",
        Ink::Blue => "#0072b2",
        Ink::Vermilion => "#d55e00",
        Ink::Green => "#009e73",
    }
}

fn dashes(dash: Dash) -> &'static str {
    match dash {
        Dash::Solid => "",
        Dash::Long => " stroke-dasharray=\"8 4\"",
        Dash::Short => " stroke-dasharray=\"4 3\"",
        Dash::Dotted => " stroke-dasharray=\"1.5 3\"",
    }
}
