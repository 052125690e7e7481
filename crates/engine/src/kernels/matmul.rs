//! Matrix products over the `gemm` crate: out = a·b or out += a·b, all f32.
//!
//! `gemm` is called on one thread at a time with fixed tiles, and with at most [`DEPTH`] of the inner dimension: that is
//! the depth below which `gemm` does not split further, so its block sizes, which follow the processor's caches, cannot
//! change the order of a sum.

use crate::threads::{Parts, Threads};

/// A tile's extent along the side whose operand `gemm` has to transpose while packing: each part is packed once.
const TILE_PACKED: usize = 192;
/// A tile's extent along the other side: long, because every tile packs its part of the first side again.
const TILE_LONG: usize = 1024;
/// A tile's rows where neither operand is transposed.
const TILE_ROWS: usize = 512;
/// Products of one uninterrupted sum.
const DEPTH: usize = 512;

/// A matrix that is read: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Operand<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Operand {
            data,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub(crate) fn transposed(data: &'a [f32], stride: usize) -> Self {
        Operand {
            data,
            row_stride: 1,
            column_stride: stride,
        }
    }

    fn pointer(&self, row: usize, column: usize) -> *const f32 {
        let start = row * self.row_stride + column * self.column_stride;
        self.data[start..].as_ptr()
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// Sizes of a product: out is `rows × columns`, the sums run over `depth`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
}

/// What happens to what `out` held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Accumulate,
}

/// `out` (dense, `rows × columns`) becomes or gains `a·b`, with a: `rows × depth`, b: `depth × columns`.
pub(crate) fn matmul(
    threads: &Threads,
    shape: Shape,
    out: &mut [f32],
    write: Write,
    a: Operand,
    b: Operand,
) {
    assert_eq!(out.len(), shape.rows * shape.columns, "matmul: size of out");
    let (tile_rows, tile_columns) = tile(a, b);
    let down = shape.rows.div_ceil(tile_rows);
    let across = shape.columns.div_ceil(tile_columns);
    let parts = Parts::new(out);
    threads.run(down * across, |task, _| {
        let (row, column) = (task / across * tile_rows, task % across * tile_columns);
        let part = Shape {
            rows: tile_rows.min(shape.rows - row),
            columns: tile_columns.min(shape.columns - column),
            depth: shape.depth,
        };
        let a = Operand {
            data: &a.data[row * a.row_stride..],
            ..a
        };
        let b = Operand {
            data: &b.data[column * b.column_stride..],
            ..b
        };
        let start = parts.pointer(row * shape.columns + column);
        // SAFETY: tiles are disjoint parts of `out`, which holds rows × columns elements.
        unsafe { block(part, start, shape.columns, write, a, b, 1.0) };
    });
}

/// Rows and columns of one task's tile, by the operands' layout alone.
fn tile(a: Operand, b: Operand) -> (usize, usize) {
    if b.row_stride == 1 && b.column_stride != 1 {
        (TILE_LONG, TILE_PACKED)
    } else if a.row_stride == 1 && a.column_stride != 1 {
        (TILE_PACKED, TILE_LONG)
    } else {
        (TILE_ROWS, TILE_LONG)
    }
}

/// One product on the calling thread, scaled: out = scale·a·b, or out += scale·a·b; rows of out are `stride` apart.
///
/// # Safety
/// `out` must point to `rows` rows of `columns` elements, `stride` apart, that nothing else reads or writes meanwhile.
pub(crate) unsafe fn block(
    shape: Shape,
    out: *mut f32,
    stride: usize,
    write: Write,
    a: Operand,
    b: Operand,
    scale: f32,
) {
    assert!(
        a.holds(shape.rows, shape.depth) && b.holds(shape.depth, shape.columns),
        "matmul: operand too short"
    );
    let mut start = 0;
    while start < shape.depth {
        let depth = DEPTH.min(shape.depth - start);
        // SAFETY: operands hold what is read, by the assertion; out by this function's contract.
        unsafe {
            gemm::gemm(
                shape.rows,
                shape.columns,
                depth,
                out,
                1,
                stride as isize,
                write == Write::Accumulate || start > 0,
                a.pointer(0, start),
                a.column_stride as isize,
                a.row_stride as isize,
                b.pointer(start, 0),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        start += depth;
    }
}
