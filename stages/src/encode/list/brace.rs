//! Brace patterns of shard names: `train-{0000..1023}.tar` and `{train,extra}-{0..9}.tar`.
//!
//! As bash expands them: a range counts from its first number to its second, up or down, padded with zeros to the
//! longer one where either begins with a zero; several groups give all combinations, the last group changing fastest.
//! Where bash would keep the braces as they are, or would go on to things that names of shards do not need (nesting,
//! steps, letters, signs, backslashes), there is an error. The `webdataset` family has an expansion of its own, without
//! a limit on how much it makes.

use std::iter;

/// Most names that a pattern may give.
pub const MAX_NAMES: u64 = 1_000_000;

/// Longest pattern in bytes: the longest path on Linux.
pub const MAX_PATTERN_LEN: usize = 4096;

/// Most digits of a number in a range.
const MAX_DIGITS: usize = 18;

/// Why a pattern cannot be expanded. Positions are bytes, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BraceError {
    /// The pattern is too long to be a path.
    #[error("the pattern has {len} bytes and at most {MAX_PATTERN_LEN} are allowed; shorten it")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A brace without its partner.
    #[error("{pattern}: the brace at byte {at} has no partner; add it")]
    Unbalanced {
        /// The pattern.
        pattern: String,
        /// Where the brace is.
        at: usize,
    },
    /// A group inside a group.
    #[error(
        "{pattern}: the brace at byte {at} is inside another group; write all alternatives in one group, {{a,b,c}}"
    )]
    Nested {
        /// The pattern.
        pattern: String,
        /// Where the inner brace is.
        at: usize,
    },
    /// A group that is neither a range nor a list.
    #[error(
        "{pattern}: {{{got}}} at byte {at} is neither a range of numbers such as {{0000..1023}} nor a list such as {{a,b}}; write one of these"
    )]
    NotAGroup {
        /// The pattern.
        pattern: String,
        /// Where the group begins.
        at: usize,
        /// What is between the braces.
        got: String,
    },
    /// Too many names.
    #[error("{pattern}: this gives more than {MAX_NAMES} names; give a smaller range")]
    TooMany {
        /// The pattern.
        pattern: String,
    },
}

/// The names that `pattern` stands for, at least one; the pattern itself if it has no braces. Duplicates are kept.
pub fn expand(pattern: &str) -> Result<Vec<String>, BraceError> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(BraceError::TooLong { len: pattern.len() });
    }
    let unbalanced = |at| BraceError::Unbalanced { pattern: pattern.to_owned(), at };
    let too_many = || BraceError::TooMany { pattern: pattern.to_owned() };
    let mut groups = Vec::new();
    let mut rest = 0;
    while let Some(open) = pattern[rest..].find(['{', '}']).map(|at| rest + at) {
        if pattern.as_bytes()[open] == b'}' {
            return Err(unbalanced(open));
        }
        let close = pattern[open + 1..].find(['{', '}']).map(|at| open + 1 + at).ok_or_else(|| unbalanced(open))?;
        if pattern.as_bytes()[close] == b'{' {
            return Err(BraceError::Nested { pattern: pattern.to_owned(), at: close });
        }
        let inside = &pattern[open + 1..close];
        let group = Group::parse(inside).ok_or_else(|| {
            let got = inside.to_owned();
            BraceError::NotAGroup { pattern: pattern.to_owned(), at: open, got }
        })?;
        groups.push((&pattern[rest..open], group));
        rest = close + 1;
    }
    // Before anything is made.
    let count = groups.iter().try_fold(1_u64, |count, (_, group)| count.checked_mul(group.len()));
    if count.is_none_or(|count| count > MAX_NAMES) {
        return Err(too_many());
    }
    let mut names = vec![String::new()];
    for (before, group) in groups {
        let words = group.words();
        names = names.iter().flat_map(|name| words.iter().map(move |word| [name, before, word].concat())).collect();
    }
    names.iter_mut().for_each(|name| name.push_str(&pattern[rest..]));
    Ok(names)
}

#[derive(Debug)]
enum Group<'a> {
    List(Vec<&'a str>),
    Range { first: u64, last: u64, width: usize },
}

impl<'a> Group<'a> {
    fn parse(inside: &'a str) -> Option<Self> {
        if inside.contains(',') {
            return Some(Self::List(inside.split(',').collect()));
        }
        let (first, last) = inside.split_once("..")?;
        let number = |text: &str| {
            let plain = (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        };
        let padded = |text: &str| text.len() > 1 && text.starts_with('0');
        let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
        Some(Self::Range { first: number(first)?, last: number(last)?, width })
    }

    fn len(&self) -> u64 {
        match self {
            Self::List(words) => words.len() as u64,
            Self::Range { first, last, .. } => first.abs_diff(*last) + 1,
        }
    }

    fn words(&self) -> Vec<String> {
        match *self {
            Self::List(ref words) => words.iter().map(|word| (*word).to_owned()).collect(),
            Self::Range { first, last, width } => {
                let step = |now: &u64| match now.cmp(&last) {
                    std::cmp::Ordering::Less => Some(now + 1),
                    std::cmp::Ordering::Equal => None,
                    std::cmp::Ordering::Greater => Some(now - 1),
                };
                iter::successors(Some(first), step).map(|number| format!("{number:0width$}")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_as_in_bash() {
        let cases = [
            ("a.tar", "a.tar"),
            ("", ""),
            ("x-{08..11}.tar", "x-08.tar x-09.tar x-10.tar x-11.tar"),
            ("{8..11}", "8 9 10 11"),
            ("{0..002}", "000 001 002"),
            ("{007..7}", "007"),
            ("{2..0}", "2 1 0"),
            ("{0..0}x", "0x"),
            ("{a,b}{0..1}", "a0 a1 b0 b1"),
            ("/d/{ä,}-{1,1}.tar", "/d/ä-1.tar /d/ä-1.tar /d/-1.tar /d/-1.tar"),
            ("{0..1,x}", "0..1 x"),
        ];
        for (pattern, expected) in cases {
            assert_eq!(expand(pattern).unwrap().join(" "), expected, "{pattern}");
        }
        assert_eq!(expand("imagenet-{0000..1023}.tar").unwrap()[1023], "imagenet-1023.tar");
    }

    #[test]
    fn a_million_names_are_made_and_one_more_is_refused_before_any() {
        assert_eq!(expand("{000..999}{000..999}").unwrap().len(), 1_000_000);
        for pattern in ["{0..1000000}", "{0..999999999999999999}", "{0..999}{0..999}{a,b}", &"{0..9}".repeat(680)] {
            assert_eq!(expand(pattern), Err(BraceError::TooMany { pattern: pattern.into() }));
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_place() {
        let unbalanced = |pattern: &str, at| BraceError::Unbalanced { pattern: pattern.into(), at };
        assert_eq!(expand("a{0..1").unwrap_err(), unbalanced("a{0..1", 1));
        assert_eq!(expand("{0..1}}").unwrap_err(), unbalanced("{0..1}}", 6));
        assert_eq!(expand("ä}").unwrap_err(), unbalanced("ä}", 2));
        let nested = BraceError::Nested { pattern: "{a,{b,c}}".into(), at: 3 };
        assert_eq!(expand("{a,{b,c}}").unwrap_err(), nested);
        for got in [
            "",
            "abc",
            "..",
            "0..",
            "..9",
            "0..1..2",
            "0...9",
            "a..e",
            "-1..3",
            "+1..3",
            " 0..3",
            "0..1e3",
            "0..1000000000000000000",
        ] {
            let pattern = format!("x{{{got}}}");
            let error = expand(&pattern).unwrap_err();
            assert!(error.to_string().contains("{0000..1023}"), "{error}");
            assert_eq!(error, BraceError::NotAGroup { pattern, at: 1, got: got.into() });
        }
        let long = "x".repeat(MAX_PATTERN_LEN + 1);
        assert_eq!(expand(&long).unwrap_err(), BraceError::TooLong { len: 4097 });
        assert!(expand(&long[1..]).is_ok());
    }
}
