// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All interleavings of the gate's steps, with threads that run the real code one step at a time.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Condvar, Mutex};
use std::thread;

use super::*;

/// Who runs next is decided here, depth first over all choices.
#[derive(Default)]
struct Explorer {
    /// The choice to take at each branching, and how many there are.
    path: Vec<(usize, usize)>,
    /// Situations from which everything has been tried.
    seen: HashSet<Situation>,
    runs: usize,
}

/// All that the rest of a run depends on: the word, what has been delivered, and what each thread has seen so far.
type Situation = (u32, Vec<Note>, Vec<Vec<u64>>, Vec<Status>);

/// What the outside world sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Note {
    /// An interrupt reached the guest.
    Delivered,
    /// The controller believes that nothing is delivered from here …
    Silence,
    /// … to here.
    Noise,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    /// Between two steps, on its own.
    Running,
    /// Before a step.
    Ready,
    /// Asleep on the word.
    Asleep,
    Finished,
}

struct World {
    word: u32,
    notes: Vec<Note>,
    statuses: Vec<Status>,
    histories: Vec<Vec<u64>>,
    /// Who may take a step.
    turn: Option<usize>,
}

/// One run's world. `Word` and the threads' own steps go through [`step`](Stage::step).
struct Stage {
    world: Mutex<World>,
    changed: Condvar,
}

impl Stage {
    /// Waits for the thread's turn and takes one step.
    fn step(&self, me: usize, step: impl FnOnce(&mut World) -> u64) -> u64 {
        let mut world = self.world.lock().unwrap();
        world.statuses[me] = Status::Ready;
        self.changed.notify_all();
        world = self.changed.wait_while(world, |w| w.turn != Some(me)).unwrap();
        world.turn = None;
        world.statuses[me] = Status::Running;
        let seen = step(&mut world);
        world.histories[me].push(seen);
        seen
    }

    fn note(&self, me: usize, note: Note) {
        self.step(me, |w| {
            w.notes.push(note);
            0
        });
    }
}

/// The gate's word as one thread sees it.
struct Seat<'a> {
    stage: &'a Stage,
    me: usize,
}

impl Seat<'_> {
    fn on_word(&self, step: impl FnOnce(&mut u32) -> u32) -> u32 {
        u32::try_from(self.stage.step(self.me, |w| u64::from(step(&mut w.word)))).unwrap()
    }
}

impl Word for Seat<'_> {
    fn load(&self) -> u32 {
        self.on_word(|w| *w)
    }

    fn compare_exchange(&self, current: u32, new: u32) -> bool {
        let swapped = self.on_word(|w| {
            let same = *w == current;
            if same {
                *w = new;
            }
            u32::from(same)
        });
        swapped == 1
    }

    fn fetch_or(&self, bits: u32) -> u32 {
        self.on_word(|w| std::mem::replace(w, *w | bits))
    }

    fn fetch_sub(&self, n: u32) -> u32 {
        self.on_word(|w| {
            let before = *w;
            *w = before.checked_sub(n).expect("more have left than entered");
            before
        })
    }

    fn wait(&self, current: u32) {
        let me = self.me;
        let asleep = self.stage.step(me, |w| {
            let asleep = w.word == current;
            if asleep {
                w.statuses[me] = Status::Asleep;
            }
            u64::from(asleep)
        });
        if asleep == 1 {
            let world = self.stage.world.lock().unwrap();
            self.stage.changed.notify_all();
            drop(self.stage.changed.wait_while(world, |w| w.statuses[me] == Status::Asleep).unwrap());
        }
    }

    fn wake(&self) {
        self.stage.step(self.me, |w| {
            for status in &mut w.statuses {
                if *status == Status::Asleep {
                    *status = Status::Running;
                }
            }
            0
        });
        self.stage.changed.notify_all();
    }
}

/// What a thread does: it is given the gate and the stage, and says what came of it.
type Role = fn(&Gate<Seat<'_>>, &Stage, usize) -> u64;

/// Runs `roles` as threads in every possible order, starting from `word`, and shows each outcome to `check`: the final word, what
/// happened, and what each role returned.
fn explore(word: u32, roles: &[Role], check: impl Fn(u32, &[Note], &[u64])) -> usize {
    let mut explorer = Explorer::default();
    loop {
        explorer.run(word, roles, &check);
        explorer.runs += 1;
        // The last branching that has a choice left; what lies below is forgotten.
        while let Some((choice, of)) = explorer.path.pop() {
            if choice + 1 < of {
                explorer.path.push((choice + 1, of));
                break;
            }
        }
        if explorer.path.is_empty() {
            return explorer.runs;
        }
    }
}

impl Explorer {
    fn run(&mut self, word: u32, roles: &[Role], check: &impl Fn(u32, &[Note], &[u64])) {
        let stage = Stage {
            world: Mutex::new(World {
                word,
                notes: Vec::new(),
                statuses: vec![Status::Running; roles.len()],
                histories: vec![Vec::new(); roles.len()],
                turn: None,
            }),
            changed: Condvar::new(),
        };
        let results = thread::scope(|scope| {
            let threads: Vec<_> = roles
                .iter()
                .enumerate()
                .map(|(me, role)| {
                    let stage = &stage;
                    scope.spawn(move || {
                        let result = role(&Gate { word: Seat { stage, me } }, stage, me);
                        stage.world.lock().unwrap().statuses[me] = Status::Finished;
                        stage.changed.notify_all();
                        result
                    })
                })
                .collect();
            self.direct(&stage);
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        let world = stage.world.into_inner().unwrap();
        check(world.word, &world.notes, &results);
    }

    /// Gives turns until all have finished.
    fn direct(&mut self, stage: &Stage) {
        let mut depth = 0;
        let mut known = false;
        loop {
            let world = stage.world.lock().unwrap();
            let mut world = stage
                .changed
                .wait_while(world, |w| w.turn.is_some() || w.statuses.contains(&Status::Running))
                .unwrap();
            let ready: Vec<_> =
                (0..world.statuses.len()).filter(|&i| world.statuses[i] == Status::Ready).collect();
            if ready.is_empty() {
                assert!(world.statuses.iter().all(|s| *s == Status::Finished), "asleep for ever");
                return;
            }
            let mut choice = 0;
            if depth < self.path.len() {
                choice = self.path[depth].0;
            } else if !known {
                let situation =
                    (world.word, world.notes.clone(), world.histories.clone(), world.statuses.clone());
                // Where everything from here on has been tried, finish the run without branching.
                known = !self.seen.insert(situation);
                if !known {
                    self.path.push((0, ready.len()));
                }
            }
            depth += 1;
            world.turn = Some(ready[choice]);
            stage.changed.notify_all();
        }
    }
}

fn deliver(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> Passage {
    gate.signal(|| {
        stage.note(me, Note::Delivered);
        Ok::<_, Infallible>(())
    })
    .unwrap()
}

/// One signal. Returns how many passed.
fn signal(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
    u64::from(deliver(gate, stage, me) == Passage::Passed)
}

fn signal_twice(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
    signal(gate, stage, me) + signal(gate, stage, me)
}

/// Masks and unmasks. Returns how many signals the gate reported as held.
fn mask_and_unmask(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
    gate.close();
    stage.note(me, Note::Silence);
    stage.note(me, Note::Noise);
    let held = gate.open();
    if held {
        stage.note(me, Note::Delivered);
    }
    u64::from(held)
}

fn unmask(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
    let held = gate.open();
    if held {
        stage.note(me, Note::Delivered);
    }
    u64::from(held)
}

fn hand_over(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
    let held = gate.bypass();
    if held {
        stage.note(me, Note::Delivered);
    }
    u64::from(held)
}

fn count(notes: &[Note], note: Note) -> u64 {
    notes.iter().filter(|n| **n == note).count() as u64
}

/// Nothing is delivered while the controller believes in silence.
fn assert_silence(notes: &[Note]) {
    let mut silent = false;
    for note in notes {
        match note {
            Note::Silence => silent = true,
            Note::Noise => silent = false,
            Note::Delivered => assert!(!silent, "delivered while masked: {notes:?}"),
        }
    }
}

#[test]
fn no_interleaving_delivers_while_masked_or_loses_a_signal() {
    let runs = explore(0, &[signal, signal, mask_and_unmask], |word, notes, results| {
        assert_silence(notes);
        assert_eq!(word, 0, "the gate is open, nothing pending, nobody inside");
        let (passed, reported) = (results[0] + results[1], results[2]);
        assert_eq!(count(notes, Note::Delivered), passed + reported);
        assert_eq!(
            reported,
            u64::from(passed < 2),
            "held signals are reported once, and only if there are any"
        );
    });
    assert!(runs > 100, "only {runs} interleavings");
}

#[test]
fn one_device_that_signals_twice_is_heard_through_a_mask_cycle() {
    explore(0, &[signal_twice, mask_and_unmask], |word, notes, results| {
        assert_silence(notes);
        assert_eq!(word, 0);
        assert_eq!(count(notes, Note::Delivered), results[0] + results[1]);
        assert_eq!(results[1], u64::from(results[0] < 2));
    });
}

#[test]
fn signals_against_an_unmask_arrive_at_least_once_and_never_twice_each() {
    explore(CLOSED, &[signal, signal, unmask], |word, notes, results| {
        assert_eq!(word, 0);
        let delivered = count(notes, Note::Delivered);
        assert_eq!(delivered, results.iter().sum::<u64>());
        assert!((1..=2).contains(&delivered));
    });
}

#[test]
fn a_pending_signal_and_a_new_one_are_both_heard_on_unmask() {
    explore(CLOSED | PENDING, &[signal, unmask], |word, notes, _| {
        assert_eq!(word, 0);
        // The new one either joins the pending one or comes by itself.
        assert!((1..=2).contains(&count(notes, Note::Delivered)));
    });
}

#[test]
fn handing_the_eventfd_over_while_masked_moves_what_is_pending_into_it() {
    // Deliveries are writes to the disarmed eventfd here: what counts is that none is left behind in the word.
    explore(CLOSED, &[signal, signal, hand_over], |word, notes, results| {
        assert_eq!(word, CLOSED | BYPASSED);
        assert_eq!(count(notes, Note::Delivered), results.iter().sum::<u64>());
        assert!(count(notes, Note::Delivered) >= 1);
    });
}

#[test]
fn clearing_pending_takes_it_or_leaves_it_whole() {
    fn clear(gate: &Gate<Seat<'_>>, _: &Stage, _: usize) -> u64 {
        u64::from(gate.take_pending())
    }
    explore(CLOSED, &[signal, clear], |word, notes, results| {
        assert_eq!(count(notes, Note::Delivered), 0);
        assert_eq!(word, if results[1] == 1 { CLOSED } else { CLOSED | PENDING });
    });
}

#[test]
fn closing_behind_two_signals_that_are_on_their_way_through_waits_for_both() {
    fn mask(gate: &Gate<Seat<'_>>, stage: &Stage, me: usize) -> u64 {
        gate.close();
        stage.note(me, Note::Silence);
        0
    }
    explore(0, &[signal, signal, mask], |word, notes, results| {
        assert_silence(notes);
        let all_passed = results[0] + results[1] == 2;
        assert_eq!(word, if all_passed { CLOSED } else { CLOSED | PENDING });
    });
}

#[test]
fn the_real_word_holds_and_passes_under_load() {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    let gate = Gate::closed();
    let (silent, passed, stop) = (AtomicBool::new(true), AtomicU64::new(0), AtomicBool::new(false));
    let reported = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let _ = gate.signal(|| {
                        assert!(!silent.load(Ordering::SeqCst), "passed a closed gate");
                        passed.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Infallible>(())
                    });
                }
            });
        }
        let mut reported = 0u64;
        while reported < 1000 {
            silent.store(false, Ordering::SeqCst);
            reported += u64::from(gate.open());
            thread::yield_now();
            gate.close();
            silent.store(true, Ordering::SeqCst);
            while !gate.is_pending() {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
        reported
    });
    assert_eq!(reported, 1000);
}

#[test]
fn a_failing_or_panicking_pass_leaves_the_gate_usable() {
    let gate = Gate::closed();
    let _ = gate.open();
    assert_eq!(gate.signal(|| Err("full")), Err("full"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        gate.signal(|| -> Result<(), ()> { panic!("device bug") })
    }));
    assert!(panicked.is_err());
    gate.close();
    assert_eq!(gate.signal(|| Err::<(), _>("not called")), Ok(Passage::Held));
    assert!(gate.open());
}
