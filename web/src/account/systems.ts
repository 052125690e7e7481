// What a volunteer types on each system to attach a BOINC client, or to join with `athome`.

export type System = 'linux' | 'windows' | 'macos' | 'android'

export interface Way {
  name: string
  /** Beginnings of the names that BOINC gives to platforms of this system. */
  platforms: RegExp
  /** How the client gets there, a sentence. */
  install: string
  /** Where commands are typed; nothing where there is no command line. */
  shell: string | null
  /** Commands that attach, or nothing where there is no command line. */
  attach: ((url: string, key: string) => string) | null
  /** Whether we tried it with the system's real client. */
  tried: boolean
}

/** Stands in a command until there is a key. */
export const NO_KEY = 'YOUR_DEVICE_KEY'

export const systems: Record<System, Way> = {
  linux: {
    name: 'Linux',
    platforms: /(pc|unknown)-linux-gnu$/,
    install: 'Debian and Ubuntu bring the client with them; other distributions have a package of the same name.',
    shell: 'a terminal',
    attach: (url, key) =>
      `sudo apt-get install --yes boinc-client\nsudo sh -c 'cd /var/lib/boinc && boinccmd --project_attach ${url} ${key}'`,
    tried: true,
  },
  windows: {
    name: 'Windows',
    platforms: /^windows/,
    install: 'Install BOINC with the installer of boinc.berkeley.edu.',
    shell: 'the command prompt',
    attach: (url, key) => `"C:\\Program Files\\BOINC\\boinccmd.exe" --project_attach ${url} ${key}`,
    tried: false,
  },
  macos: {
    name: 'macOS',
    platforms: /apple-darwin$/,
    install: 'Install BOINC with the installer of boinc.berkeley.edu.',
    shell: 'Terminal',
    attach: (url, key) =>
      `cd "/Library/Application Support/BOINC Data"\nsudo "/Library/Application Support/BOINC Data/boinccmd" --project_attach ${url} ${key}`,
    tried: false,
  },
  android: {
    name: 'Android',
    platforms: /android/,
    install: 'Install the app BOINC, choose “Add project” by address, and sign in with the e-mail address and password of your account.',
    shell: null,
    attach: null,
    tried: false,
  },
}

/** The system that a browser says it runs on. */
export function systemOf(userAgent: string): System {
  if (/Android/i.test(userAgent)) return 'android'
  if (/Windows/i.test(userAgent)) return 'windows'
  if (/Mac OS X|Macintosh/i.test(userAgent)) return 'macos'
  return 'linux'
}

/** Whether a hub's application is made for a system, going by BOINC's names of platforms. */
export function isMadeFor(system: System, platforms: readonly string[]): boolean {
  return platforms.some((platform) => systems[system].platforms.test(platform))
}
