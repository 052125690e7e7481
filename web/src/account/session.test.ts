import { beforeEach, expect, test, vi } from 'vitest'

import type { Account } from '../api/client'

vi.hoisted(() => vi.stubGlobal('location', { origin: 'http://hub.example' }))
const calls = vi.hoisted(() => ({ account: vi.fn(), signInByLink: vi.fn() }))
vi.mock('./calls', () => calls)

const { HubError } = await import('../api/client')
const { session } = await import('./session.svelte')

const alice = { name: 'Alice' } as Account
const mallory = { name: 'Mallory' } as Account

beforeEach(() => {
  session.account = undefined
  calls.account.mockReset()
  calls.signInByLink.mockReset().mockResolvedValue(mallory)
})

test('a link signs in where nobody is signed in', async () => {
  calls.account.mockRejectedValue(new HubError('not_signed_in', 'Sign in.', 401))
  expect(await session.enter('token')).toBe(true)
  expect(calls.signInByLink).toHaveBeenCalledWith('token')
  expect(session.account).toBe(mallory)
})

test('a link takes nobody’s place unasked', async () => {
  calls.account.mockResolvedValue(alice)
  expect(await session.enter('token')).toBe(false)
  expect(calls.signInByLink).not.toHaveBeenCalled()
  expect(session.account).toBe(alice)
})

test('a link waits where the hub does not say who is signed in', async () => {
  for (const status of [0, 429, 503]) {
    calls.account.mockRejectedValue(new HubError('busy', 'Not now.', status))
    await expect(session.enter('token')).rejects.toThrow('Not now.')
    expect(calls.signInByLink).not.toHaveBeenCalled()
    expect(session.account).toBe(undefined)
  }
})
