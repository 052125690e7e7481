//! What is synced stays; SQLite's transactions are whole after a power cut at any write.

use sqlx::{
    Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{vfs::Vfs, *};

const FILE: &str = "/folder/file";

fn written(seed: u64) -> SimDisk {
    let disk = SimDisk::new(Chance::new(seed));
    let file = Path::new(FILE);
    disk.write(file, &mut |into| into.write_all(&[1; 2_000]))
        .unwrap();
    Disk::sync(&disk, file).unwrap();
    disk
}

#[test]
fn what_was_synced_survives() {
    for seed in 0..50 {
        let disk = written(seed);
        let file = Path::new(FILE);
        disk.append(file, &[2; 3_000]).unwrap();
        let moved = Path::new("/folder/moved");
        Disk::rename(&disk, file, moved).unwrap();
        disk.cut_power();
        let bytes = disk.read(file).or_else(|_| disk.read(moved)).unwrap();
        assert_eq!(bytes[..2_000], [1; 2_000], "seed {seed}");
        assert!(bytes[2_000..].iter().all(|it| matches!(it, 0 | 2)));
        Disk::sync(&disk, disk.read(file).map_or(moved, |_| file)).unwrap();
        let names = || disk.list(Path::new("/folder")).unwrap();
        let before = names();
        disk.cut_power();
        assert_eq!(names(), before);
    }
}

#[test]
fn writes_tear_in_different_ways() {
    let outcomes: BTreeSet<Vec<u8>> = (0..50)
        .map(|seed| {
            let disk = written(seed);
            disk.append(Path::new(FILE), &[2; 3_000]).unwrap();
            disk.cut_power();
            disk.read(Path::new(FILE)).unwrap()
        })
        .collect();
    assert!(outcomes.len() > 5, "{}", outcomes.len());
}

#[test]
fn a_full_disk_takes_no_more() {
    let disk = written(1);
    disk.set_full(true);
    let refusal = disk.append(Path::new(FILE), &[2]).unwrap_err();
    assert_eq!(refusal.kind(), io::ErrorKind::StorageFull);
    disk.set_full(false);
    disk.append(Path::new(FILE), &[2]).unwrap();
    assert_eq!(disk.length(Path::new(FILE)).unwrap(), 2_001);
}

#[test]
fn a_lock_is_one_processs() {
    let disk = written(1);
    let path = Path::new("/folder/lock");
    let held = disk.lock(path).unwrap();
    assert!(held.is_some());
    assert!(disk.lock(path).unwrap().is_none());
    // The process dies without letting go.
    std::mem::forget(held);
    disk.kill_process();
    assert!(disk.lock(path).unwrap().is_some());
}

#[test]
fn power_fails_in_the_middle() {
    let disk = written(1);
    disk.fail_power_after(1);
    disk.append(Path::new(FILE), &[2; 10]).unwrap();
    assert!(disk.append(Path::new(FILE), &[3; 10]).is_err());
    assert!(disk.is_dead() && disk.read(Path::new(FILE)).is_err());
    disk.cut_power();
    assert_eq!(disk.read(Path::new(FILE)).unwrap()[..2_000], [1; 2_000]);
}

/// Another life of the process.
fn life(disk: &SimDisk) -> Vfs {
    Vfs::register(disk.clone())
}

async fn connect(vfs: &Vfs) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename("/hub/test.sqlite")
        .vfs(vfs.name().to_owned())
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    SqliteConnection::connect_with(&options).await
}

/// Writes transactions of two rows until the power fails; gives how many were acknowledged.
async fn write_until_dark(vfs: &Vfs, first: i64) -> i64 {
    let mut done = first;
    let Ok(mut connection) = connect(vfs).await else {
        return done;
    };
    for number in first..first + 40 {
        let write = async {
            let mut transaction = connection.begin().await?;
            for part in 0..2 {
                sqlx::query("INSERT INTO pair VALUES (?, ?, ?)")
                    .bind(number)
                    .bind(part)
                    .bind(vec![number as u8; 1_500])
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await
        };
        if write.await.is_err() {
            break;
        }
        done = number + 1;
    }
    // A connection that is dropped ends on a thread of its own, whenever that comes to it: the next one would find it.
    let _ = connection.close().await;
    done
}

#[tokio::test]
async fn transactions_are_whole_whatever_write_the_power_fails_at() {
    let disk = SimDisk::new(Chance::new(5));
    let mut vfs = life(&disk);
    let mut connection = connect(&vfs).await.unwrap();
    sqlx::query("CREATE TABLE pair (number INTEGER, part INTEGER, bytes BLOB)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let mut first = 0;
    for power in 0..150 {
        disk.fail_power_after(power % 70);
        let acknowledged = write_until_dark(&vfs, first).await;
        disk.cut_power();
        vfs = life(&disk);
        let mut connection = connect(&vfs).await.unwrap();
        let rows = sqlx::query(
            "SELECT number, count(*) AS parts FROM pair GROUP BY number ORDER BY number",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert!(rows.iter().all(|row| row.get::<i64, _>("parts") == 2));
        let stored = rows.len() as i64;
        // The last one may be there without having been acknowledged.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&stored),
            "{power}: {acknowledged}, {stored}"
        );
        first = stored;
        connection.close().await.unwrap();
    }
    assert!(first > 100, "{first}");
}

#[tokio::test]
async fn a_full_disk_loses_no_transaction() {
    let disk = SimDisk::new(Chance::new(6));
    let vfs = life(&disk);
    let mut connection = connect(&vfs).await.unwrap();
    sqlx::query("CREATE TABLE pair (number INTEGER, part INTEGER, bytes BLOB)")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    let first = write_until_dark(&vfs, 0).await;
    assert_eq!(first, 40);
    disk.set_full(true);
    let stuck = write_until_dark(&vfs, first).await;
    disk.set_full(false);
    let more = write_until_dark(&vfs, stuck).await;
    assert_eq!(more, stuck + 40);
    let mut connection = connect(&vfs).await.unwrap();
    let rows = sqlx::query("SELECT DISTINCT number FROM pair")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows.len() as i64, more);
}
