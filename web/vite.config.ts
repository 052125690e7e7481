import { svelte } from '@sveltejs/vite-plugin-svelte'
import tailwindcss from '@tailwindcss/vite'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  plugins: [svelte(), tailwindcss()],
  build: {
    target: 'es2022',
    // The hub's Content-Security-Policy allows files of its own only: nothing is inlined as a data URL.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: {
      // The hub compares where a page is from with where it was asked: as the browser said.
      '/api': { target: process.env.ATHOME_HUB ?? 'http://127.0.0.1:7700', changeOrigin: false },
    },
  },
  test: {
    include: ['src/**/*.test.ts'],
  },
})
