use std::fs;
use std::path::Path;
use std::sync::mpsc;

use half::f16;
use pipeline::{Slabs, Stop};
use tch::Kind;

use super::*;
use crate::nets::autoencoder::VaeChoice;
use crate::train::config::ScheduleConfig;
use crate::train::{checkpoint, grids};

fn host(batch: u64) -> Slab<HostBatch> {
    let mut host = HostBatch::with_room([8, 4, 8, 8], false, false).unwrap();
    host.batch = batch;
    host.mean.fill(f16::ONE);
    let mut host = Some(host);
    Slabs::new(1, || host.take().unwrap()).take(&Stop::never()).unwrap()
}

fn quiet() -> Listener {
    Listener {
        on_metrics: Box::new(|_| {}),
        on_fault: Box::new(|_| {}),
        on_note: Box::new(|note| panic!("{note}")),
        stages: Box::new(|| None),
    }
}

const SCALING: Scaling = Scaling { factor: 1.0, shift: 0.0 };

/// A process that continues from step `from` and is to get to `steps`, with changes to its schedule.
fn begin(folder: &Path, from: u64, steps: u64, change: impl FnOnce(&mut ScheduleConfig)) -> TrainSteps {
    let mut trainer = super::super::equality::trainer(1, Kind::Float);
    trainer.step = from;
    let schedule = &mut trainer.config.train;
    (schedule.steps, schedule.log_every) = (steps, 2);
    change(schedule);
    let marks = Marks { data: "data".to_owned(), arithmetic: "cpu".to_owned(), config: String::new() };
    let run = RunDir::at(folder);
    run.rewind_metrics(from).unwrap();
    TrainSteps::new(trainer, SCALING, run, marks, Interrupt::default(), quiet())
}

/// Until its last step.
fn finish(mut sink: TrainSteps) -> TrainSummary {
    let (from, steps) = (sink.trainer.step, sink.trainer.config.train.steps);
    for step in from..steps {
        let flow = sink.consume(host(step)).unwrap();
        assert_eq!(flow.is_break(), step + 1 == steps);
    }
    sink.finish(End::Broken).unwrap()
}

fn process(folder: &Path, from: u64, steps: u64) -> TrainSummary {
    finish(begin(folder, from, steps, |_| {}))
}

fn checkpoint_steps(folder: &Path) -> Vec<u64> {
    let all = checkpoint::list(&RunDir::at(folder).checkpoints()).unwrap();
    all.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn grids_come_at_their_cadence_and_at_the_end_and_change_nothing() {
    let (plain, shown) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    process(plain.path(), 0, 5);
    let sink = begin(shown.path(), 0, 5, |schedule| schedule.sample_every = 2);
    let run = RunDir::at(shown.path());
    finish(sink.with_grids(Grids::new(VaeChoice::Tiny, SCALING, run.samples())));
    let grids = grids::list(&run.samples()).unwrap();
    assert_eq!(grids.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 5]);
    let last = |folder: &Path| fs::read(folder.join("checkpoints/step-00000005.safetensors")).unwrap();
    assert!(last(plain.path()) == last(shown.path()));
    let events = fs::read(run.tensorboard().join("events.out.tfevents.0000000000.dualpath")).unwrap();
    assert_eq!(events.windows(8).filter(|window| window == b"\x89PNG\r\n\x1a\n").count(), 3);
}

#[test]
fn a_grid_that_cannot_be_made_is_said_once_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let mut sink = begin(folder.path(), 0, 5, |schedule| schedule.sample_every = 1);
    sink.listener.on_note = Box::new(move |note| tell.send(note.to_owned()).unwrap());
    let nowhere = VaeChoice::Directory(folder.path().join("no-such-vae"));
    let summary = finish(sink.with_grids(Grids::new(nowhere, SCALING, folder.path().join("samples"))));
    let told: Vec<_> = told.iter().collect();
    assert_eq!((summary.step, told.len()), (5, 1));
    assert!(told[0].starts_with("no more sample grids") && told[0].contains("no-such-vae"), "{told:?}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("checkpoints");
    fs::write(&blocked, "in the way").unwrap();
    let mut sink = begin(folder.path(), 0, 1000, |schedule| schedule.checkpoint_every = 3);
    let error = (0..1000).find_map(|step| sink.consume(host(step)).err()).expect("long before the last step");
    assert!(error.to_string().starts_with(&blocked.display().to_string()), "{error}");
    assert!(sink.trainer.step < 10, "{}", sink.trainer.step);

    // The place becomes free, and what was done is not lost.
    fs::remove_file(&blocked).unwrap();
    let done = sink.trainer.step;
    drop(sink);
    assert_eq!(checkpoint_steps(folder.path()), [done]);
}

#[test]
fn a_run_that_fails_elsewhere_still_saves_the_steps_that_were_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = begin(folder.path(), 0, 9, |schedule| schedule.checkpoint_every = 2);
    (0..3).for_each(|step| assert!(sink.consume(host(step)).unwrap().is_continue()));
    assert!(sink.consume(host(7)).unwrap_err().to_string().contains("batch 7 arrived at step 3"));
    drop(sink);
    assert_eq!(checkpoint_steps(folder.path()), [2, 3]);
}

#[test]
fn the_first_batch_and_the_waits_of_the_whole_are_told_once_by_each_process() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let summary = process(folder.path(), 0, 5);
    assert_eq!((summary.step, summary.interrupted, summary.waits.count()), (5, false, 4));
    assert!(summary.first_batch.unwrap() + summary.waits.total() < begun.elapsed());
    let continued = process(folder.path(), 4, 7);
    assert_eq!(continued.waits.count(), 2);

    let lines = RunDir::at(folder.path()).read_metrics().unwrap();
    let told =
        |of: fn(&Metrics) -> bool| -> Vec<u64> { lines.iter().filter(|line| of(line)).map(|line| line.step).collect() };
    // Of a process that continues from step 4 the first line is that of step 6: two steps, one wait.
    assert_eq!(told(|_| true), [1, 2, 4, 6, 7]);
    assert_eq!(told(|line| line.first_batch_s.is_some()), [1, 6]);
    assert_eq!(told(|line| line.wait_ms.is_none()), [1]);
    assert_eq!(told(|line| line.run_wait.is_some()), [7]);
    assert_eq!(lines[4].run_wait, Some(continued.waits.figures()));
    for process in ["0000000000", "0000000004"] {
        assert!(folder.path().join(format!("tensorboard/events.out.tfevents.{process}.dualpath")).exists());
    }
}
