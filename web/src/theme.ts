/** Light, dark, or whatever the system says; kept in the browser. */
export type Theme = 'system' | 'light' | 'dark'

const KEY = 'athome.theme'
const ORDER: Theme[] = ['system', 'light', 'dark']

export function storedTheme(): Theme {
  const stored = localStorage.getItem(KEY)
  return ORDER.find((theme) => theme === stored) ?? 'system'
}

export function nextTheme(theme: Theme): Theme {
  return ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length]!
}

/** Sets the theme on the document and remembers it; charts listen for `athome:theme`. */
export function applyTheme(theme: Theme): void {
  if (theme === 'system') {
    delete document.documentElement.dataset.theme
    localStorage.removeItem(KEY)
  } else {
    document.documentElement.dataset.theme = theme
    localStorage.setItem(KEY, theme)
  }
  window.dispatchEvent(new Event('athome:theme'))
}
