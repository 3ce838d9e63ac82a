//! Finds the `numalign …` commands in shell scripts, units and Markdown.

/// How a text holds its commands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Shell,
    /// A systemd unit: `ExecStart=` lines.
    Unit,
    /// Markdown: the blocks fenced as `sh`.
    Markdown,
}

/// The arguments of every `numalign` that is followed by a word, without the program itself.
pub fn commands(text: &str, spoken: Spoken) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.replace("\\\n", " ").lines() {
        let line = match spoken {
            Spoken::Shell if line.trim_start().starts_with('#') => continue,
            Spoken::Shell => line,
            Spoken::Unit => match line.strip_prefix("ExecStart=") {
                Some(command) => command,
                None => continue,
            },
            Spoken::Markdown => {
                if line.starts_with("```") {
                    fenced = line == "```sh";
                }
                if !fenced {
                    continue;
                }
                line
            }
        };
        let words = split(line);
        for (place, word) in words.iter().enumerate() {
            let is_path = word.ends_with("/numalign") && !word.contains('=');
            if word != "numalign" && !is_path {
                continue;
            }
            let rest = &words[place + 1..];
            let end = rest.iter().position(|word| is_operator(word)).unwrap_or(rest.len());
            // `cp … /numalign`, `-t numalign .` and the like name the program, they do not run it.
            if rest[..end].first().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) {
                found.push(rest[..end].to_vec());
            }
        }
    }
    found
}

/// The examples in a file's comments: lines that begin with `#` and three blanks.
pub fn commented_code(text: &str) -> String {
    let code: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    code.join("\n")
}

fn is_operator(word: &str) -> bool {
    word.starts_with(['&', '|', ';', '(', ')', '>', '<', '#']) || word.starts_with("2>")
}

/// Words as a shell has them: quotes are taken away, `$(…)` stays whole, operators are words of their own.
fn split(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut started = false;
    let mut depth = 0;
    let mut previous = ' ';
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.push(c),
            (None, '\'' | '"') if depth == 0 => {
                quote = Some(c);
                started = true;
            }
            (None, '(' | '{') if depth > 0 || previous == '$' => {
                depth += 1;
                word.push(c);
            }
            (None, ')' | '}') if depth > 0 => {
                depth -= 1;
                word.push(c);
            }
            (None, ' ' | '\t') if depth == 0 => {
                if started || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (None, '&' | '|' | ';' | '(' | ')') if depth == 0 => {
                if started || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
                words.push(c.to_string());
            }
            _ => word.push(c),
        }
        previous = c;
    }
    if started || !word.is_empty() {
        words.push(word);
    }
    words
}
