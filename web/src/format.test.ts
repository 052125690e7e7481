import { expect, test } from 'vitest'

import { bytes, credits, duration, percent, relative, short } from './format'

function check<T>(format: (value: T) => string, cases: [T, string][]): void {
  for (const [value, expected] of cases) expect(format(value)).toBe(expected)
}

test('short numbers keep three digits and never show a thousand of a unit', () => {
  check(short, [
    [0, '0'],
    [999, '999'],
    [999.6, '1.00 k'],
    [12_345, '12.3 k'],
    [1_250_000, '1.25 M'],
    [-4_200, '−4.20 k'],
  ])
})

test('bytes count in 1024', () => {
  check(bytes, [
    [0, '0 B'],
    [1024, '1.00 KiB'],
    [5 * 1024 * 1024, '5.00 MiB'],
  ])
})

test('durations name two units at most and carry over', () => {
  check(duration, [
    [840, '840 ms'],
    [9_400, '9.4 s'],
    [59_990, '1 min'],
    [200_000, '3 min 20 s'],
    [3_599_900, '1 h'],
    [7_500_000, '2 h 5 min'],
    [273_600_000, '3 d 4 h'],
    [-5, '0 ms'],
  ])
})

test('relative times look both ways', () => {
  expect(relative(1_000, 1_200)).toBe('now')
  expect(relative(0, 125_000)).toBe('2 min ago')
  expect(relative(9_000, 1_000)).toBe('in 8 s')
})

test('shares and credits', () => {
  expect(percent(1, 3)).toBe('33 %')
  expect(percent(1, 30)).toBe('3.3 %')
  expect(percent(1, 0)).toBe('0 %')
  check(credits, [
    [0, '0'],
    [1, '0.000001'],
    [123, '0.000123'],
    [12_340, '0.0123'],
    [1_234_000, '1.23'],
    [12_340_000, '12.3'],
    [4_560_000_000, '4.56 k'],
  ])
})
