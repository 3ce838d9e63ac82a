//! Text in columns, for terminals.

/// Cells side by side with `gap` blanks between them, each at least as wide as its width; nothing follows the last one.
pub fn row(gap: usize, cells: &[(usize, &str)]) -> String {
    let mut line = String::new();
    for (index, (width, cell)) in cells.iter().enumerate() {
        if index > 0 {
            line.push_str(&" ".repeat(gap));
        }
        line.push_str(cell);
        // A width in a format string has a limit; this has none.
        line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count())));
    }
    line.truncate(line.trim_end().len());
    line
}

/// Rows, indented by two blanks, with columns as wide as they need.
pub fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for cells in rows {
        let cells: Vec<(usize, &str)> = widths.iter().copied().zip(cells.iter().map(String::as_str)).collect();
        text.push_str(&format!("  {}\n", row(2, &cells)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "über", ""], ["long", "b", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "  a     über\n  long  b     c\n");
        assert_eq!(row(1, &[(4, "ok"), (3, "four"), (0, "")]), "ok   four");
        let wide = "x".repeat(1 << 20);
        let rows = [["a".to_owned(), "b".to_owned()], [wide.clone(), "c".to_owned()]];
        assert!(table(&rows).ends_with(&format!("{wide}  c\n")));
    }
}
