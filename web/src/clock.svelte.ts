// One ticking clock for every relative time on the page.

let now = $state(Date.now())
setInterval(() => {
  if (!document.hidden) now = Date.now()
}, 1000)
document.addEventListener('visibilitychange', () => (now = Date.now()))

export const clock = {
  get now(): number {
    return now
  },
}
