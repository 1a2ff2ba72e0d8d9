//! What messages quote from files that may come from anywhere.

use std::path::Path;

use crate::error::ShardError;

/// [`ShardError::Json`] with the parser's words, which may quote the file.
pub(crate) fn json(path: &Path, reason: &serde_json::Error) -> ShardError {
    let mut text = excerpt(&reason.to_string());
    if text.ends_with("...") {
        text.push_str(&format!(" at line {} column {}", reason.line(), reason.column()));
    }
    ShardError::Json { path: path.to_owned(), reason: text }
}

/// Text from a file as a person may be shown it: on one line, without the control characters that drive a terminal, and
/// after 300 characters cut off with `...`.
pub fn excerpt(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(EXCERPT) {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    if text.chars().nth(EXCERPT).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Most characters of a file that a message quotes: a few lines of a terminal.
const EXCERPT: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_is_short_and_cannot_drive_a_terminal() {
        assert_eq!(excerpt("n01440764/été.JPEG"), "n01440764/été.JPEG");
        assert_eq!(excerpt("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(excerpt(&"x".repeat(10_000)), format!("{}...", "x".repeat(EXCERPT)));
        let text = format!("{{\n\"{}\": 1}}", "y".repeat(10_000));
        let reason = serde_json::from_str::<crate::Schema>(&text).unwrap_err();
        let message = json(Path::new("x"), &reason).to_string();
        assert!(message.len() < 600 && message.contains("... at line 2 column 10002"), "{message}");
    }
}
