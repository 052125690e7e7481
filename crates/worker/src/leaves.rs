//! The leaves of a worker's last updates, kept for an auditor who comes to another root (`docs/decisions/0006`).
//!
//! They lie in `leaves` beside the folder of carried states, one file an update, named by round and root. Nothing depends
//! on them: what can't be written is missed by nobody but an auditor.

use std::{io, path::Path};

use engine::update::{leaves, steps::StepLeaf};
use network::disk::Disk;
use protocol::Hash;

/// Updates whose leaves are kept.
const KEPT: usize = 64;
/// How the files' names end.
const SUFFIX: &str = ".leaves";

/// Keeps an update's leaves in a folder, and of those there no more than the newest.
pub(crate) fn keep(
    disk: &dyn Disk,
    folder: &Path,
    round: u64,
    root: &Hash,
    kept: &[StepLeaf],
) -> io::Result<()> {
    disk.make_folder(folder)?;
    let bytes = leaves::to_bytes(kept);
    let path = folder.join(format!("{round:020}-{root}{SUFFIX}"));
    disk.write(&path, &mut |file| file.write_all(&bytes))?;
    let listed = disk.list(folder)?.into_iter().map(|it| it.name);
    let mut names: Vec<String> = listed.filter(|it| it.ends_with(SUFFIX)).collect();
    names.sort();
    for oldest in names.iter().take(names.len().saturating_sub(KEPT)) {
        disk.remove(&folder.join(oldest))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use network::disk::RealDisk;

    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("leaves");
        let leaf = StepLeaf {
            step: 5,
            parameters: [1; 32],
            first_moment: [2; 32],
            second_moment: [3; 32],
            samples: [4; 32],
            loss_bits: 0,
            gradient_norm_bits: 0,
        };
        let rounds = KEPT as u64 + 3;
        for round in 1..=rounds {
            let root = Hash([round as u8; 32]);
            keep(&RealDisk, &folder, round, &root, &[leaf]).unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), KEPT);
        let newest = format!("{rounds:020}-{}.leaves", Hash([rounds as u8; 32]));
        assert_eq!(names[KEPT - 1], newest);
        let bytes = fs::read(folder.join(newest)).unwrap();
        assert_eq!(leaves::from_bytes(&bytes), Ok(vec![leaf]));
    }
}
