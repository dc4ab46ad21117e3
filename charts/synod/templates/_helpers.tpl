{{- define "synod.labels" -}}
app.kubernetes.io/name: synod-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "synod.clusterName" -}}
synod-operator-{{ .Release.Namespace }}
{{- end }}

{{- define "synod.subjects" -}}
- kind: ServiceAccount
  name: {{ .Values.serviceAccount.name }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* What the operator may do in the namespaces it watches. The same as
     manifests/install.yaml, which is generated: a test compares the two. */}}
{{- define "synod.rules" -}}
- apiGroups: [synod.dev]
  resources: [paxosclusters]
  verbs: [get, list, watch]
- apiGroups: [synod.dev]
  resources: [paxosclusters/status]
  verbs: [patch, update]
- apiGroups: [synod.dev]
  resources: [paxosclusters/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, watch, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, list, watch, create, patch]
{{- end }}
