//! Small dense linear algebra for the covariance detectors: symmetric matrices, row by row, no dependency.

/// Eigenvalues, falling, and their vectors as rows, of a symmetric matrix. Jacobi, Über ein leichtes Verfahren, 1846.
pub(crate) fn eigen(mut matrix: Vec<f64>, size: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; size * size];
    for at in 0..size {
        vectors[at * size + at] = 1.0;
    }
    for _ in 0..50 {
        let off: f64 = (0..size)
            .flat_map(|row| (row + 1..size).map(move |column| (row, column)))
            .map(|(row, column)| matrix[row * size + column].abs())
            .sum();
        if off < 1e-10 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(&mut matrix, &mut vectors, size, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| matrix[b * size + b].total_cmp(&matrix[a * size + a]));
    let values = order.iter().map(|at| matrix[at * size + at]).collect();
    let rows = order
        .iter()
        .flat_map(|at| vectors[at * size..][..size].iter().copied())
        .collect();
    (values, rows)
}

/// The inverse of a symmetric positive definite matrix, of which the lower triangle is read. Cholesky's factor, published by Benoît, 1924.
pub(crate) fn inverse(mut matrix: Vec<f64>, size: usize) -> Vec<f64> {
    for row in 0..size {
        for column in 0..=row {
            let products: f64 = (0..column)
                .map(|at| matrix[row * size + at] * matrix[column * size + at])
                .sum();
            let left = matrix[row * size + column] - products;
            matrix[row * size + column] = if row == column {
                left.max(f64::MIN_POSITIVE).sqrt()
            } else {
                left / matrix[column * size + column]
            };
        }
    }
    let mut inverse = vec![0.0; size * size];
    for unit in 0..size {
        let solved = &mut inverse[unit * size..][..size];
        solved[unit] = 1.0;
        for row in unit..size {
            let products: f64 = (unit..row).map(|at| matrix[row * size + at] * solved[at]).sum();
            solved[row] = (solved[row] - products) / matrix[row * size + row];
        }
        for row in (0..size).rev() {
            let products: f64 = (row + 1..size).map(|at| matrix[at * size + row] * solved[at]).sum();
            solved[row] = (solved[row] - products) / matrix[row * size + row];
        }
    }
    inverse
}

fn rotate(matrix: &mut [f64], vectors: &mut [f64], size: usize, p: usize, q: usize) {
    let off = matrix[p * size + q];
    if off.abs() < 1e-15 {
        return;
    }
    let theta = (matrix[q * size + q] - matrix[p * size + p]) / (2.0 * off);
    let sign = if theta < 0.0 { -1.0 } else { 1.0 };
    let tangent = sign / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    for at in 0..size {
        let (a, b) = (matrix[at * size + p], matrix[at * size + q]);
        matrix[at * size + p] = cosine * a - sine * b;
        matrix[at * size + q] = sine * a + cosine * b;
    }
    for at in 0..size {
        let (a, b) = (matrix[p * size + at], matrix[q * size + at]);
        matrix[p * size + at] = cosine * a - sine * b;
        matrix[q * size + at] = sine * a + cosine * b;
        let (a, b) = (vectors[p * size + at], vectors[q * size + at]);
        vectors[p * size + at] = cosine * a - sine * b;
        vectors[q * size + at] = sine * a + cosine * b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn eigenvectors_give_the_matrix_back(size in 1usize..7, seed in prop::collection::vec(-2.0..2.0f64, 49)) {
            let mut matrix = vec![0.0; size * size];
            for row in 0..size {
                for column in 0..size {
                    matrix[row * size + column] = seed[row.min(column) * 7 + row.max(column)];
                }
            }
            let (values, vectors) = eigen(matrix.clone(), size);
            prop_assert!(values.is_sorted_by(|a, b| a >= b));
            for row in 0..size {
                for column in 0..size {
                    let back: f64 = (0..size).map(|at| values[at] * vectors[at * size + row] * vectors[at * size + column]).sum();
                    prop_assert!((back - matrix[row * size + column]).abs() < 1e-8);
                }
            }
        }
    }
}
