//! One panel of a picture: frame, title, labelled axes, and what is drawn inside.

use super::axis::{Axis, label};
use super::{Anchor, Dash, Ink, Mark, Picture, Point};

/// Panel size and the margins around it, in pixels.
const SIDE: f64 = 300.0;
const LEFT: f64 = 68.0;
const TOP: f64 = 60.0;
const WIDTH: f64 = LEFT + SIDE + 20.0;
const HEIGHT: f64 = TOP + SIDE + 54.0;

const TITLE_SIZE: f64 = 13.0;
const LABEL_SIZE: f64 = 11.0;

impl Picture {
    /// A sheet with room for so many panels side by side, under a headline that says what all of them show.
    pub fn of_panels(count: usize, headline: &str) -> Self {
        let width = count as f64 * WIDTH;
        let text = headline.to_owned();
        let at = (width / 2.0, 20.0);
        let headline = Mark::Text { at, size: TITLE_SIZE, anchor: Anchor::Middle, turned: false, text };
        Self { width, height: HEIGHT, marks: vec![headline] }
    }
}

/// What a panel shows.
pub struct Titles {
    pub panel: &'static str,
    pub x: &'static str,
    pub y: &'static str,
}

/// One panel of a picture.
pub struct Panel<'a> {
    picture: &'a mut Picture,
    left: f64,
    x: &'a Axis,
    y: &'a Axis,
    /// Heights of the names at the right end, so that none is written over another.
    names: Vec<f64>,
}

impl<'a> Panel<'a> {
    /// Frame, titles and ticks of the panel at `place`, counted from 0.
    pub fn begin(picture: &'a mut Picture, place: usize, titles: &Titles, x: &'a Axis, y: &'a Axis) -> Self {
        let offset = place as f64 * WIDTH;
        let left = offset + LEFT;
        let (middle, bottom) = (left + SIDE / 2.0, TOP + SIDE);
        let mut panel = Self { picture, left, x, y, names: Vec::new() };
        panel.text((middle, TOP - 12.0), TITLE_SIZE, Anchor::Middle, false, titles.panel);
        panel.text((middle, bottom + 38.0), LABEL_SIZE, Anchor::Middle, false, titles.x);
        panel.text((offset + 14.0, TOP + SIDE / 2.0), LABEL_SIZE, Anchor::Middle, true, titles.y);
        let right = left + SIDE;
        panel.stroke(vec![(left, TOP), (right, TOP), (right, bottom), (left, bottom), (left, TOP)]);
        for tick in x.ticks() {
            let at = left + SIDE * x.place(tick).unwrap_or(0.0);
            panel.stroke(vec![(at, bottom), (at, bottom + 5.0)]);
            panel.text((at, bottom + 18.0), LABEL_SIZE, Anchor::Middle, false, &label(tick));
        }
        for tick in y.ticks() {
            let at = bottom - SIDE * y.place(tick).unwrap_or(0.0);
            panel.stroke(vec![(left, at), (left - 5.0, at)]);
            panel.text((left - 8.0, at + 4.0), LABEL_SIZE, Anchor::End, false, &label(tick));
        }
        panel
    }

    fn text(&mut self, at: Point, size: f64, anchor: Anchor, turned: bool, text: &str) {
        self.picture.marks.push(Mark::Text { at, size, anchor, turned, text: text.to_owned() });
    }

    fn stroke(&mut self, points: Vec<Point>) {
        self.picture.marks.push(Mark::Line { points, ink: Ink::Black, dash: Dash::Solid });
    }

    /// Where the values stand on the sheet, those that the axes can show.
    fn places(&self, values: &[(f64, f64)]) -> Vec<Point> {
        let mut places = Vec::with_capacity(values.len());
        for (x, y) in values {
            if let (Some(x), Some(y)) = (self.x.place(*x), self.y.place(*y)) {
                places.push((self.left + SIDE * x, TOP + SIDE * (1.0 - y)));
            }
        }
        places
    }

    /// Many points, each a small dot that shows through.
    pub fn points(&mut self, values: &[(f64, f64)]) {
        let points = self.places(values);
        self.picture.marks.push(Mark::Dots { points, radius: 1.6, ink: Ink::Blue, opacity: 0.35 });
    }

    /// Few points, each a dot of its own.
    pub fn marked(&mut self, values: &[(f64, f64)], ink: Ink) {
        let points = self.places(values);
        self.picture.marks.push(Mark::Dots { points, radius: 3.0, ink, opacity: 1.0 });
    }

    /// A text that ends just above a value.
    pub fn named(&mut self, value: (f64, f64), name: &str) {
        if let Some((x, y)) = self.places(&[value]).first() {
            self.text((x - 2.0, y - 6.0), LABEL_SIZE, Anchor::End, false, name);
        }
    }

    /// A line between two points to compare with, its name at its right end: above it, or below it where there is no room.
    pub fn guide(&mut self, from: (f64, f64), to: (f64, f64), look: (Ink, Dash), name: &str) {
        let points = self.places(&[from, to]);
        let [(_, start), (x, y)] = points[..] else {
            return;
        };
        // Left of the end of a line that rises there is room.
        let level = (start - y).abs() < LABEL_SIZE;
        let mut at = if level { (x - 4.0, y - 4.0) } else { (x - LABEL_SIZE * 2.0, y + LABEL_SIZE) };
        let taken = |height: f64| self.names.iter().any(|name| (name - height).abs() < LABEL_SIZE + 1.0);
        if level && (at.1 - LABEL_SIZE < TOP || taken(at.1)) {
            at.1 = y + LABEL_SIZE + 2.0;
            while taken(at.1) {
                at.1 += LABEL_SIZE + 1.0;
            }
        }
        self.names.push(at.1);
        self.text(at, LABEL_SIZE, Anchor::End, false, name);
        self.picture.marks.push(Mark::Line { points, ink: look.0, dash: look.1 });
    }

    /// A line across the panel at a height to compare with, with its name.
    pub fn level(&mut self, height: f64, look: (Ink, Dash), name: &str) {
        let (left, right) = self.x.ends();
        self.guide((left, height), (right, height), look, name);
    }

    /// A line through the values, in their order.
    pub fn line(&mut self, values: &[(f64, f64)], look: (Ink, Dash)) {
        let points = self.places(values);
        self.picture.marks.push(Mark::Line { points, ink: look.0, dash: look.1 });
    }
}
