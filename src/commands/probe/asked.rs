//! What the flags ask for, and whether the run has it.

use anyhow::{Result, bail};

/// `--layers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layers {
    All,
    Some(Vec<i64>),
}

/// `all`, or numbers with commas between them.
pub(super) fn layers(text: &str) -> Result<Layers, String> {
    if text == "all" {
        return Ok(Layers::All);
    }
    let number = |part: &str| part.trim().parse().map_err(|_| "give `all`, or blocks from 1 on as in 2,4,6".to_owned());
    text.split(',').map(number).collect::<Result<_, _>>().map(Layers::Some)
}

impl Layers {
    /// In ascending order, of a network of `depth` blocks.
    pub(super) fn of(&self, depth: i64) -> Result<Vec<i64>> {
        let Self::Some(asked) = self else { return Ok((1..=depth).collect()) };
        if let Some(wrong) = asked.iter().find(|layer| !(1..=depth).contains(*layer)) {
            bail!("--layers {wrong}: the network has the blocks 1 to {depth}");
        }
        let mut blocks = asked.clone();
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }
}

/// At least one, each in 0..=1 and none twice.
pub(super) fn check_times(times: &[f64]) -> Result<()> {
    if let Some(wrong) = times.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        bail!("--t {wrong} must lie in 0..=1, where 0 is data");
    }
    if let Some(twice) = times.iter().enumerate().find_map(|(i, t)| times[..i].contains(t).then_some(t)) {
        bail!("--t names {twice} twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_all_or_some_in_order_and_within_the_network() {
        assert_eq!(layers("all").unwrap().of(3).unwrap(), [1, 2, 3]);
        assert_eq!(layers("6, 2,2").unwrap().of(6).unwrap(), [2, 6]);
        for wrong in ["", "2,", "two", "1.5"] {
            assert!(layers(wrong).unwrap_err().contains("as in 2,4,6"), "{wrong}");
        }
        let error = |text: &str| layers(text).unwrap().of(6).unwrap_err().to_string();
        assert_eq!(error("2,7"), "--layers 7: the network has the blocks 1 to 6");
        assert!(error("0").contains("--layers 0"));
    }

    #[test]
    fn times_lie_between_data_and_noise_and_come_once() {
        check_times(&[0.0, 0.25, 1.0]).unwrap();
        assert!(check_times(&[0.5, f64::NAN]).unwrap_err().to_string().contains("--t NaN must lie in 0..=1"));
        assert!(check_times(&[0.5, 0.0, 0.5]).unwrap_err().to_string().contains("--t names 0.5 twice"));
    }
}
