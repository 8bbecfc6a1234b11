//! A dataset whose files rotted.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use templar_data::Dataset;
use templar_node::pretrain::setup::Setup;

/// The node has a copy of the dataset, beside the shared one, in which every token of the training split is damaged. Hashes
/// of shards show it: the node judges nobody by it, and votes all the same.
pub fn wrap(setup: Setup) -> Setup {
    let copy = setup.dataset.dir().with_file_name(format!("damaged-{}", setup.name));
    copy_damaged(&setup.dataset, &copy).expect("the rehearsal's own folder can be written");
    let dataset = Dataset::open(&copy).expect("only tokens are damaged");
    Setup { dataset: Arc::new(dataset), ..setup }
}

fn copy_damaged(dataset: &Dataset, copy: &Path) -> io::Result<()> {
    fs::create_dir_all(copy)?;
    let train: Vec<String> = dataset.manifest().train.shards.iter().map(|shard| shard.hash.to_string()).collect();
    for file in fs::read_dir(dataset.dir())? {
        let file = file?;
        let mut bytes = fs::read(file.path())?;
        let name = file.file_name();
        if train.iter().any(|shard| name.to_string_lossy().contains(shard.as_str())) {
            bytes.fill(0xff);
        }
        fs::write(copy.join(name), bytes)?;
    }
    Ok(())
}
