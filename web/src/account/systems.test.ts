import { expect, test } from 'vitest'

import guide from '../../../docs/guides/boinc-volunteer.md?raw'
import { isMadeFor, NO_KEY, systemOf, systems } from './systems'

test('a browser’s system is known by what it says', () => {
  expect(systemOf('Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36')).toBe('linux')
  expect(systemOf('Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36')).toBe('android')
  expect(systemOf('Mozilla/5.0 (Windows NT 10.0; Win64; x64)')).toBe('windows')
  expect(systemOf('Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)')).toBe('macos')
  expect(systemOf('')).toBe('linux')
})

test('platforms are told apart by BOINC’s names', () => {
  const linux = ['x86_64-pc-linux-gnu']
  expect(isMadeFor('linux', linux)).toBe(true)
  expect(isMadeFor('android', linux)).toBe(false)
  expect(isMadeFor('windows', ['windows_x86_64'])).toBe(true)
  expect(isMadeFor('macos', ['arm64-apple-darwin'])).toBe(true)
  expect(isMadeFor('android', ['aarch64-android-linux-gnu'])).toBe(true)
  expect(isMadeFor('linux', ['aarch64-android-linux-gnu'])).toBe(false)
  expect(isMadeFor('linux', [])).toBe(false)
})

test('every command holds the address and the key', () => {
  for (const { attach } of Object.values(systems)) {
    if (!attach) continue
    const command = attach('https://hub.example/', 'd_abc')
    expect(command).toContain('--project_attach https://hub.example/ d_abc')
  }
})

test('the guide says the same as the page, and all of its commands are asked where the client obeys', () => {
  expect(guide).toContain(systems.linux.attach?.('https://HUB/', NO_KEY))
  const commands = guide.split('\n').filter((line) => /boinccmd --/.test(line))
  expect(commands.map((line) => /--\w+/.exec(line)?.[0])).toEqual(['--project_attach', '--create_account', '--lookup_account', '--project_attach'])
  for (const command of commands) expect(command).toMatch(/^sudo sh -c 'cd \/var\/lib\/boinc && boinccmd [^']+'/)
})
