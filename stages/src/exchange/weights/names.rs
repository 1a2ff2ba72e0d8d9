//! Names of tensors: what other programs wrap around them, and what a network of ours has no use for.

use std::collections::btree_map::Entry;

use super::torch::Tensors;
use crate::nets::weights::Mismatch;

/// A name without what `torch.compile` (`_orig_mod.`, anywhere) and `DistributedDataParallel` (`module.`, in front)
/// add.
pub(super) fn unwrap(name: &str) -> String {
    let name = name.replace("_orig_mod.", "");
    let mut rest = name.as_str();
    while let Some(inner) = rest.strip_prefix("module.") {
        rest = inner;
    }
    rest.to_owned()
}

/// All tensors under their unwrapped names, which must still differ.
pub(super) fn unwrap_all(tensors: Tensors) -> Result<Tensors, Mismatch> {
    let mut renamed = Tensors::new();
    let mut mismatch = Mismatch::default();
    for (name, tensor) in tensors {
        match renamed.entry(unwrap(&name)) {
            Entry::Vacant(vacant) => drop(vacant.insert(tensor)),
            Entry::Occupied(taken) => mismatch.unexpected.push(format!("{name} (a second {})", taken.key())),
        }
    }
    if mismatch.unexpected.is_empty() { Ok(renamed) } else { Err(mismatch) }
}

/// REPA's first checkpoints number the blocks behind the aligned one from 0 again, as `decoder_blocks`: they go on
/// counting. How many there were.
pub(super) fn join_blocks(tensors: &mut Tensors) -> usize {
    let number = |name: &str, prefix: &str| -> Option<(u64, String)> {
        let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((number.parse().ok()?, rest.to_owned()))
    };
    let first = tensors.keys().filter_map(|name| number(name, "blocks.")).map(|(i, _)| i.saturating_add(1)).max();
    let first = first.unwrap_or(0);
    let later: Vec<String> = tensors.keys().filter(|name| number(name, "decoder_blocks.").is_some()).cloned().collect();
    let mut blocks = 0;
    for name in later {
        let (Some((i, rest)), Some(tensor)) = (number(&name, "decoder_blocks."), tensors.remove(&name)) else {
            continue;
        };
        blocks = blocks.max(i.saturating_add(1));
        tensors.insert(format!("blocks.{}.{rest}", first.saturating_add(i)), tensor);
    }
    blocks as usize
}

/// Removes what no network of ours has: integers, and projectors behind the first. Says what it was, if anything.
pub(super) fn leave_out(tensors: &mut Tensors) -> Vec<String> {
    let mut notes = Vec::new();
    let mut remove = |what: &str, unwanted: &dyn Fn(&str, &Tensors) -> bool| {
        let names: Vec<String> = tensors.keys().filter(|name| unwanted(name, tensors)).cloned().collect();
        if let Some(first) = names.first() {
            notes.push(format!("left out {} {what}, such as {first}", names.len()));
        }
        for name in names {
            tensors.remove(&name);
        }
    };
    remove("tensors that are no floats", &|name, tensors| tensors[name].float.is_none());
    remove("tensors of further projectors", &|name, _| {
        name.strip_prefix("projectors.").is_some_and(|rest| !rest.starts_with("0."))
    });
    notes
}

#[cfg(test)]
mod tests {
    use super::super::stored::{Float, Stored};
    use super::*;

    fn tensors(names: &[&str]) -> Tensors {
        let stored = |float| Stored::contiguous(float, 0, 1, vec![1]).unwrap();
        let float = |name: &str| (!name.ends_with("count")).then_some(Float::F32);
        names.iter().map(|&name| (name.to_owned(), stored(float(name)))).collect()
    }

    fn names(tensors: &Tensors) -> Vec<&str> {
        tensors.keys().map(String::as_str).collect()
    }

    #[test]
    fn wrappers_are_taken_off_and_names_must_still_differ() {
        assert_eq!(unwrap("module._orig_mod.module.a._orig_mod.b.module.c"), "a.b.module.c");
        assert_eq!(names(&unwrap_all(tensors(&["module.a", "_orig_mod.b"])).unwrap()), ["a", "b"]);
        let mismatch = unwrap_all(tensors(&["a", "module.a"])).unwrap_err();
        assert_eq!(mismatch.to_string(), "1 unexpected: module.a (a second a)");
    }

    #[test]
    fn blocks_behind_the_aligned_one_go_on_counting() {
        let mut all = tensors(&["blocks.0.w", "blocks.1.w", "decoder_blocks.0.w", "decoder_blocks.10.w", "decoder_x"]);
        assert_eq!(join_blocks(&mut all), 11);
        assert_eq!(names(&all), ["blocks.0.w", "blocks.1.w", "blocks.12.w", "blocks.2.w", "decoder_x"]);
    }

    #[test]
    fn integers_and_further_projectors_are_left_out_with_a_note() {
        let mut all = tensors(&["count", "projectors.0.0.weight", "projectors.1.0.weight", "projectors.2.0.weight"]);
        let notes = leave_out(&mut all);
        assert_eq!(names(&all), ["projectors.0.0.weight"]);
        assert_eq!(notes[0], "left out 1 tensors that are no floats, such as count");
        assert_eq!(notes[1], "left out 2 tensors of further projectors, such as projectors.1.0.weight");
    }
}
