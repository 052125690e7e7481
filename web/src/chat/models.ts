// The gateway's list of models, with what AI@home says beside OpenAI's fields.

export interface Model {
  id: string
  run?: string
  runName?: string
  /** Round of the checkpoint that answers. */
  round?: number
  parameters?: number
  /** Context in tokens. */
  context?: number
}

export async function listModels(gateway: string): Promise<Model[]> {
  const response = await fetch(`${gateway.replace(/\/+$/, '')}/v1/models`)
  if (!response.ok) throw new Error(`The gateway answered with status ${response.status}.`)
  return readModels(await response.json())
}

/** Reads the list; an entry without an id is left out, a missing field is unknown. */
export function readModels(body: unknown): Model[] {
  const data = (body as { data?: unknown })?.data
  if (!Array.isArray(data)) return []
  return data.flatMap((each: Record<string, unknown> | null) =>
    typeof each?.id === 'string'
      ? [
          {
            id: each.id,
            run: text(each.run),
            runName: text(each.run_name),
            round: number(each.round),
            parameters: number(each.parameters),
            context: number(each.context_length),
          },
        ]
      : [],
  )
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function number(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined
}
