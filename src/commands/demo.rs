//! `pipeline demo`: the whole line in minutes.
//!
//! Only drawing the images is the demonstration's own. Every other part is a command line that a user could type: it is
//! composed as words, parsed like words from a shell, run, and shown in the report.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use pipeline::{Flow, Runtime};
use serde::{Deserialize, Serialize};
use stages::device::cores;
use stages::procedural::{self, Classes, Draw, Portfolio, WriteFiles};

use super::evaluate::Evaluation;
use super::{encode, evaluate, sample, train};
use crate::cli::{Cli, Command};
use crate::config;
use crate::exit::{Ended, Outcome};
use crate::report::FlowRecord;
use crate::show::{self, Progress};

mod page;

/// Side of the images that are trained on, in pixels: a 16 x 16 latent is enough for one thing in the picture.
const SIZE: usize = 128;

const PRESET: &str = "dupa-demo";

/// Draw labelled images, encode them, train a small DUPA on them, sample, and judge the samples: minutes on two cores.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Folder for everything; an interrupted demonstration is continued
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Images of each class to train on
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least::<2>)]
    pub(crate) per_class: usize,
    /// Images of each class that are held out to judge the samples by
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = at_least::<1>)]
    pub(crate) held_out_per_class: usize,
    /// Training steps [default: those of the preset dupa-demo]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Samples of each class, at most 50
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=50))]
    pub(crate) samples_per_class: u64,
    /// Evaluations of the velocity for a sample
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = at_least::<1>)]
    pub(crate) sample_steps: usize,
    /// Seed of the images, of training and of sampling
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..1 << 63))]
    pub(crate) seed: u64,
}

/// A number that would otherwise be refused only after minutes of work.
fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number >= LEAST);
    number.ok_or_else(|| format!("must be a whole number of at least {LEAST}"))
}

/// `demo.json`: what an existing demonstration was begun with, all of which its images and training depend on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    seed: u64,
    per_class: usize,
    held_out_per_class: usize,
    steps: u64,
}

/// Where the parts of the line meet.
#[derive(Debug)]
struct Places {
    train: PathBuf,
    held_out: PathBuf,
    latents: PathBuf,
    run: PathBuf,
    samples: PathBuf,
}

/// A part of the line as it went; kept beside its output, so that a continued demonstration can still report it.
#[derive(Debug, Serialize, Deserialize)]
struct PartRecord {
    /// Wall time. Of a part that goes on where it was stopped, summed over all the times that it was begun.
    seconds: f64,
    /// Of the last time that there was something to do.
    flow: Option<FlowRecord>,
}

pub(crate) fn run(args: &DemoArgs, runtime: &Runtime) -> Result<Outcome> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    settle(args)?;
    show::keep_log(&args.out.join("log.txt"))?;
    show::say(&format!("pipeline demo in {}, seed {}", args.out.display(), args.seed));
    let portfolio = Portfolio {
        dir: args.out.join("images"),
        classes: Classes::Named,
        per_class: args.per_class,
        held_out_per_class: args.held_out_per_class,
        seed: args.seed,
    };
    let places = Places {
        train: portfolio.train(),
        held_out: portfolio.held_out(),
        latents: args.out.join("latents"),
        run: args.out.join("run"),
        samples: args.out.join("samples"),
    };

    show::say(&format!("1/5 draw {} labelled images", portfolio.count()));
    let (ended, drawing) = part(args, "draw", || draw(&portfolio, runtime))?;
    if let Outcome::Interrupted(_) = ended.outcome {
        return Ok(ended.outcome);
    }
    let mut records = vec![drawing];
    let lines = command_lines(args, &places);
    for (i, (name, words)) in ["encode", "train", "sample"].into_iter().zip(&lines).enumerate() {
        show::say(&format!("\n{}/5 {}", i + 2, shell(words)));
        let (ended, record) = part(args, name, || match parse(words)? {
            Command::Encode(args) => encode::run(&args, runtime),
            Command::Train(args) => train::run(&args, runtime),
            Command::Sample(args) => sample::run(&args, runtime),
            _ => bail!("{name} is no part of the demonstration"),
        })?;
        if let Outcome::Interrupted(_) = ended.outcome {
            return Ok(ended.outcome);
        }
        records.push(record);
    }

    let words = &lines[3];
    show::say(&format!("\n5/5 {}", shell(words)));
    let Command::Evaluate(evaluate) = parse(words)? else { bail!("evaluate is not a command") };
    let mut evaluation = None;
    let (ended, record) = part(args, "evaluate", || {
        evaluation = evaluate::evaluate(&evaluate, runtime)?;
        let outcome = match evaluation {
            Some(_) => Outcome::Done,
            None => Outcome::Interrupted("stopped while evaluating; run the same command to continue".to_owned()),
        };
        Ok(Ended { outcome, report: None })
    })?;
    let (Outcome::Done, Some(evaluation)) = (&ended.outcome, evaluation) else { return Ok(ended.outcome) };
    show::result(&evaluate::lines(&evaluation));
    records.push(record);

    if !page::write(args, &places, &lines, &records, &evaluation, runtime)? {
        return Ok(Outcome::Interrupted("stopped before the report; run the same command to continue".to_owned()));
    }
    summarise(args, &records, &evaluation);
    Ok(Outcome::Done)
}

/// Takes a folder that is new, empty, or that of the same demonstration; in any other something would be overwritten.
fn settle(args: &DemoArgs) -> Result<()> {
    let out = args.out.display();
    if args.out.to_str().is_none() {
        bail!("{out}: the name is not UTF-8, and is part of command lines; give another --out");
    }
    let steps = match args.steps {
        Some(steps) => steps,
        None => config::resolve(Some(PRESET), None, &[])?.train.steps,
    };
    let DemoArgs { seed, per_class, held_out_per_class, .. } = *args;
    let asked = Settings { seed, per_class, held_out_per_class, steps };
    let path = args.out.join("demo.json");
    match fs::read(&path) {
        Ok(text) => {
            let stored: Settings = serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged; remove the folder, or give another --out", path.display()))?;
            if stored != asked {
                bail!(
                    "{out} holds a demonstration with --seed {}, --per-class {}, --held-out-per-class {} and --steps {}; \
                     give these again, or another --out",
                    stored.seed,
                    stored.per_class,
                    stored.held_out_per_class,
                    stored.steps
                );
            }
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let mut entries = fs::read_dir(&args.out).with_context(|| format!("cannot read {out}"))?;
            if entries.next().is_some() {
                bail!("{out} holds other files; give --out a folder that is new or empty");
            }
            let temporary = args.out.join("demo.json.tmp");
            fs::write(&temporary, serde_json::to_vec_pretty(&asked)?)
                .and_then(|()| fs::rename(&temporary, &path))
                .with_context(|| format!("cannot write {}", path.display()))
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn draw(portfolio: &Portfolio, runtime: &Runtime) -> Result<Ended> {
    let total = portfolio.count() as u64;
    let mut progress = Progress::new("drawing", total);
    #[rustfmt::skip]
    let finished = Flow::from(portfolio.commissions()?) //   -> Commission  class, seed, size
        .then(Draw::new).workers(cores())               //   -> Drawn       a JPEG in memory
        .into(WriteFiles::default())
        .observe(progress.interval(), move |report| {
            let done = report.stages.last().map_or(0, |stage| stage.items);
            progress.at(done, &format!("drew {done}/{total} images"));
        })
        .run(runtime)?;
    let outcome = match finished.interrupted {
        true => Outcome::Interrupted("stopped while drawing; run the same command to begin again".to_owned()),
        false => Outcome::Done,
    };
    Ok(Ended { outcome, report: Some(finished.report) })
}

/// Runs one part and keeps how it went in `parts/<name>.json`.
fn part(args: &DemoArgs, name: &str, work: impl FnOnce() -> Result<Ended>) -> Result<(Ended, PartRecord)> {
    let folder = args.out.join("parts");
    let path = folder.join(format!("{name}.json"));
    let earlier = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<PartRecord>(&text).ok());
    let began = Instant::now();
    let ended = work()?;
    let mut record = PartRecord { seconds: began.elapsed().as_secs_f64(), flow: None };
    if let Some(earlier) = earlier {
        record.flow = earlier.flow;
        // The others begin again each time.
        if ["encode", "train"].contains(&name) {
            record.seconds += earlier.seconds;
        }
    }
    if let Some(report) = &ended.report {
        record.flow = Some(FlowRecord::of(report));
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(&path, serde_json::to_vec_pretty(&record)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok((ended, record))
}

/// The command lines of encode, train, sample and evaluate.
fn command_lines(args: &DemoArgs, places: &Places) -> [Vec<String>; 4] {
    let line = |text: &str, paths: &[&Path]| {
        let mut paths = paths.iter();
        let word = |word: &str| match word {
            "{}" => paths.next().map_or_else(String::new, |path| path.display().to_string()),
            word => word.to_owned(),
        };
        ["pipeline"].into_iter().chain(text.split(' ')).map(word).collect::<Vec<_>>()
    };
    let Places { train, held_out, latents, run, samples } = places;
    let (seed, sample_steps) = (args.seed, args.sample_steps);
    let count = args.samples_per_class * procedural::CLASSES.len() as u64;
    let mut training =
        line(&format!("train --data {{}} --run {{}} --preset {PRESET} --set train.seed={seed}"), &[latents, run]);
    if let Some(steps) = args.steps {
        training.extend(["--steps".to_owned(), steps.to_string()]);
    }
    [
        line(&format!("encode --images {{}} --out {{}} --size {SIZE} --shuffle-seed {seed}"), &[train, latents]),
        training,
        line(
            &format!(
                "sample --run {{}} --out {{}} --count {count} --labels balanced --cfg 2 --steps {sample_steps} \
                 --batch 8 --seed {seed}"
            ),
            &[run, samples],
        ),
        line("evaluate --samples {} --reference {} --train {}", &[samples, held_out, train]),
    ]
}

/// Reads words as a shell would hand them to the program.
fn parse(words: &[String]) -> Result<Command> {
    Ok(<Cli as clap::Parser>::try_parse_from(words)?.into_command())
}

/// Words as one line that a shell takes apart into the same words.
fn shell(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    let quoted = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

fn summarise(args: &DemoArgs, records: &[PartRecord], evaluation: &Evaluation) {
    let total: f64 = records.iter().map(|record| record.seconds).sum();
    let in_their_class = show::percent(evaluation.nearest_neighbour_accuracy.share());
    show::result(&format!(
        "\ndone in {}: {in_their_class} of the samples look like their class (chance {})\n\
         the samples, a class a row: {}\nthe whole story, in a browser: {}",
        show::duration(total),
        show::percent(evaluation.chance),
        args.out.join("samples/grid.png").display(),
        args.out.join("report.html").display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_spaces_and_quotes_are_quoted_for_a_shell() {
        let words = ["pipeline", "--out", "my demo", "it's", "", "a=b"].map(str::to_owned);
        assert_eq!(shell(&words), r"pipeline --out 'my demo' 'it'\''s' '' a=b");
    }

    #[test]
    fn every_command_line_of_the_demonstration_is_one_that_the_program_takes() {
        let args = DemoArgs {
            out: "a b".into(),
            per_class: 1,
            held_out_per_class: 1,
            steps: Some(7),
            samples_per_class: 2,
            sample_steps: 3,
            seed: 9,
        };
        let place = |name: &str| args.out.join(name);
        let places = Places {
            train: place("t"),
            held_out: place("h"),
            latents: place("l"),
            run: place("r"),
            samples: place("s"),
        };
        let [encode, train, sample, evaluate] = command_lines(&args, &places).map(|words| parse(&words).unwrap());
        assert!(matches!(encode, Command::Encode(encode) if encode.images == places.train && encode.size == SIZE));
        assert!(matches!(train, Command::Train(train) if train.run == places.run && train.steps == Some(7)));
        assert!(matches!(sample, Command::Sample(sample) if sample.count == 16 && sample.steps == 3));
        assert!(matches!(evaluate, Command::Evaluate(evaluate) if evaluate.samples == places.samples));
    }
}
