use std::sync::Arc;
use std::time::Instant;
use templar_codec::{Codec, outer_step};
use templar_protocol::{hash::Hasher, layout::Layout, run::*};
fn main() {
    let rows = 16u64;
    let layout = Arc::new(Layout::new((0..rows).map(|i| (format!("t{i}"), vec![1024, 1024]))));
    let n = layout.len();
    let gen_ = |seed: u64| {
        let mut h = Hasher::new("x");
        let mut s = h.update_value(&seed).clone().into_stream();
        (0..n)
            .map(|_| {
                let u = s.next_u64();
                let a = ((u >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
                (-(a.ln()) * if u & 1 == 0 { 1e-3 } else { -1e-3 }) as f32
            })
            .collect::<Vec<f32>>()
    };
    let delta = gen_(1);
    let a = vec![1.0f32; 64 << 20];
    let mut b = vec![0.0f32; 64 << 20];
    let med = |f: &mut dyn FnMut()| {
        let mut t: Vec<f64> = (0..7)
            .map(|_| {
                let s = Instant::now();
                f();
                s.elapsed().as_secs_f64()
            })
            .collect();
        t.sort_by(f64::total_cmp);
        t[3]
    };
    let copy = med(&mut || b.copy_from_slice(&a));
    let gbs = 8.0 * a.len() as f64 / copy / 1e9;
    println!("copy {gbs:.1} GB/s -> 12 bytes: {:.0} M/s", gbs * 1e3 / 12.0);
    if let Ok(what) = std::env::var("ONLY") {
        let spec = CodecSpec { kind: CodecKind::TopkSign, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 16.0 };
        let codec = Codec::new(layout.clone(), &spec);
        let mut e = vec![0.0f32; n];
        let p: bytes::Bytes = codec.encode(&mut e, &delta).unwrap().into();
        let c = codec.decode(p).unwrap();
        let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 };
        let cs = vec![&c; 20];
        let s = Instant::now();
        for _ in 0..60 {
            if what == "e" {
                codec.encode(&mut e, &delta).unwrap();
            } else {
                outer_step(codec.layout(), &mut e, &cs, &outer);
            }
        }
        println!("{:.0}", 60.0 * n as f64 / s.elapsed().as_secs_f64() / 1e6);
        return;
    }
    for kind in [CodecKind::TopkSign, CodecKind::TopkTwoBit] {
        let spec = CodecSpec { kind, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 16.0 };
        let codec = Codec::new(layout.clone(), &spec);
        let mut e = vec![0.0f32; n];
        let mut payload = bytes::Bytes::new();
        let acc = med(&mut || codec.accumulate(&mut e, &delta));
        let t = med(&mut || payload = codec.encode(&mut e, &delta).unwrap().into());
        let r = med(&mut || codec.decode(payload.clone()).unwrap().subtract_from(&mut e));
        let check = med(&mut || {
            codec.decode(payload.clone()).unwrap();
        });
        let m = |t: f64| n as f64 / t / 1e6;
        println!(
            "{kind:?} bits {:.3} acc {:.0} encode {:.0} M/s; residual {:.0}; both {:.0} = {:.0}% of copy; check {:.0}",
            payload.len() as f64 * 8.0 / (n as f64 / 64.0),
            m(acc),
            m(t),
            m(r),
            m(t + r),
            100.0 * m(t + r) * 12e6 / gbs / 1e9,
            m(check)
        );
        let payloads: Vec<bytes::Bytes> =
            (0..20).map(|s| codec.encode(&mut vec![0.0; n], &gen_(s)).unwrap().into()).collect();
        let mut theta = gen_(99);
        for (mean_over, min_senders) in [(MeanOver::Senders, 2), (MeanOver::Peers, 1)] {
            let outer = OuterSpec { rate: 1.0, mean_over, min_senders };
            let t = med(&mut || {
                let c: Vec<_> = payloads.iter().map(|p| codec.decode(p.clone()).unwrap()).collect();
                outer_step(codec.layout(), &mut theta, &c.iter().collect::<Vec<_>>(), &outer);
            });
            println!("  decode20 {mean_over:?} {:.0} M/s", m(t));
        }
    }
}
