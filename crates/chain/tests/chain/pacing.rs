use std::time::Duration;

use futures::StreamExt;
use templar_chain::{BlockTime, Chain, DevChain, Pacer, run_blocks};
use templar_protocol::keys::Hotkey;
use tokio::{
    sync::watch,
    time::{Instant, advance, sleep},
};

use super::{chain_with, config, key};

const CAP: Duration = Duration::from_mins(1);

struct Running {
    chain: DevChain,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

fn run(time: BlockTime) -> Running {
    let chain = chain_with(config(), &[("a", 0), ("b", 0)]);
    let (stop, stopped) = watch::channel(false);
    let blocks = run_blocks(chain.clone(), time, stopped);
    let task = tokio::spawn(async move { blocks.await.unwrap() });
    Running { chain, stop, task }
}

fn paced(names: &[&str]) -> BlockTime {
    BlockTime::Paced { participants: names.iter().map(|name| hotkey(name)).collect(), cap: CAP }
}

fn hotkey(name: &str) -> Hotkey {
    key(name).hotkey()
}

#[tokio::test(start_paused = true)]
async fn blocks_come_when_everybody_is_done_and_time_stands_still() {
    let Running { chain, stop, task } = run(paced(&["a", "b"]));
    let mut heads = chain.heads().await.unwrap();
    let start = Instant::now();
    chain.pace(hotkey("a"), 50).unwrap();
    Pacer::Dev(chain.clone()).pace(&hotkey("b"), 20).await.unwrap();
    while heads.next().await.unwrap().number < 20 {}
    Pacer::Dev(chain.clone()).pace(&hotkey("b"), 40).await.unwrap();
    while heads.next().await.unwrap().number < 40 {}
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Nobody has said anything about block 41: it waits.
    sleep(CAP / 2).await;
    assert_eq!(chain.newest().number, 40);
    assert!(chain.late().is_empty());
    stop.send(true).unwrap();
    task.await.unwrap();
    assert_eq!(chain.newest().number, 40);
}

#[tokio::test(start_paused = true)]
async fn who_never_reports_delays_each_block_by_the_cap_and_is_named() {
    let Running { chain, stop: _keep, .. } = run(paced(&["a", "b"]));
    let mut heads = chain.heads().await.unwrap();
    assert_eq!(heads.next().await.unwrap().number, 1);
    let start = Instant::now();
    Pacer::Dev(chain.clone()).pace(&hotkey("a"), 4).await.unwrap();
    for block in 2..=4 {
        assert_eq!(heads.next().await.unwrap().number, block);
        assert_eq!(start.elapsed(), CAP * (block as u32 - 1));
    }
    assert_eq!(chain.late(), [2, 3, 4].map(|block| (block, hotkey("b"))));
    // A node that restarts may take back what it said.
    Pacer::Dev(chain.clone()).pace(&hotkey("b"), 9).await.unwrap();
    Pacer::Dev(chain.clone()).pace(&hotkey("a"), 9).await.unwrap();
    Pacer::Dev(chain.clone()).pace(&hotkey("b"), 4).await.unwrap();
    heads.next().await.unwrap();
    assert_eq!(start.elapsed(), CAP * 4);
    assert_eq!(chain.late().last(), Some(&(5, hotkey("b"))));
}

#[tokio::test(start_paused = true)]
async fn nobody_to_wait_for_is_no_busy_loop_and_a_lost_sender_stops() {
    let Running { chain, stop, task } = run(paced(&[]));
    sleep(CAP * 5 + CAP / 2).await;
    assert_eq!(chain.newest().number, 6);
    drop(stop);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fixed_interval_keeps_time_and_makes_up_for_nothing() {
    let Running { chain, stop: _keep, .. } = run(BlockTime::Fixed(Duration::from_millis(500)));
    sleep(Duration::from_millis(5250)).await;
    assert_eq!(chain.newest().number, 11);
    // The machine sleeps for ten minutes: one block follows at once, then the interval again.
    advance(Duration::from_mins(10)).await;
    sleep(Duration::from_millis(400)).await;
    assert_eq!(chain.newest().number, 12);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(chain.newest().number, 13);
}
